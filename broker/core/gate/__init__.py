"""What every call goes through, whichever door it came in by: who calls, a sound request, an answer, one record."""
