"""What several attention mechanisms share: configs, masks, costs, the registry of the folder."""
