"""What every task, model and data set stands on; knows none of them."""
