"""The page of `catvec run --report`: what a run did, for people who would rather look than read."""
