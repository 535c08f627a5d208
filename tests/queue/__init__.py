"""What is promised of `Queue` beyond the contract."""
