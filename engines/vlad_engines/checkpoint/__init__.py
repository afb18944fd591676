"""From a checkpoint directory to a contract, norm stats, a tokenizer and weights; all of it offline."""
