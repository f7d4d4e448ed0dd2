"""The flows: wiring only. A body reads as the data path."""
