"""Training, evaluation and prediction: what ``pyconv train | evaluate | predict`` call."""
