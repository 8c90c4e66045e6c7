"""Results for people and programs: plain records and tables in the terminal."""
