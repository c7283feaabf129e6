"""What a run learns, in one of several forms. Another form is one more file here, and a line in `FORMS` of choice.py."""
