"""Data to train and judge with: chest radiographs from folders, and synthetic phantoms."""
