"""What each row did to the model: the derivative of a whole training run, and whether retraining agrees with it."""
