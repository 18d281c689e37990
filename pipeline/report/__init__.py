"""Pages for people who would rather look than read: `catvec run --report` and what other commands' pages share."""
