"""Everything that speaks SQL to the database with the vectors."""
