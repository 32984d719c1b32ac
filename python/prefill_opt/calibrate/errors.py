"""The one exception that calibration shows to its user."""


class CalibrationError(RuntimeError):
    """Input that cannot be calibrated; the text is one line that says what to change."""
