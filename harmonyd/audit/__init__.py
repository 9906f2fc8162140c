"""The audit trail: who did what with whose data, as PS3.15 A.5 has it."""
