"""Fine-tuning of embedders and rerankers. Import from its modules: nothing here is loaded unless it is asked for."""
