"""The module paths of FlagEmbedding 1.2.9, 1.2.11, 1.3.5 and 1.4.0, below the package."""

PATHS = """
BGE_M3 BGE_M3.arguments BGE_M3.data BGE_M3.modeling BGE_M3.run BGE_M3.split_data_by_length BGE_M3.trainer abc
abc.evaluation abc.evaluation.arguments abc.evaluation.data_loader abc.evaluation.evaluator abc.evaluation.runner
abc.evaluation.searcher abc.evaluation.utils abc.finetune abc.finetune.embedder abc.finetune.embedder.AbsArguments
abc.finetune.embedder.AbsDataset abc.finetune.embedder.AbsModeling abc.finetune.embedder.AbsRunner
abc.finetune.embedder.AbsTrainer abc.finetune.reranker abc.finetune.reranker.AbsArguments
abc.finetune.reranker.AbsDataset abc.finetune.reranker.AbsModeling abc.finetune.reranker.AbsRunner
abc.finetune.reranker.AbsTrainer abc.inference abc.inference.AbsEmbedder abc.inference.AbsReranker
baai_general_embedding baai_general_embedding.finetune baai_general_embedding.finetune.arguments
baai_general_embedding.finetune.data baai_general_embedding.finetune.eval_msmarco
baai_general_embedding.finetune.hn_mine baai_general_embedding.finetune.modeling baai_general_embedding.finetune.run
baai_general_embedding.finetune.trainer baai_general_embedding.retromae_pretrain
baai_general_embedding.retromae_pretrain.arguments baai_general_embedding.retromae_pretrain.data
baai_general_embedding.retromae_pretrain.enhancedDecoder baai_general_embedding.retromae_pretrain.modeling
baai_general_embedding.retromae_pretrain.run baai_general_embedding.retromae_pretrain.trainer
baai_general_embedding.retromae_pretrain.utils bge_m3 evaluation evaluation.air_bench evaluation.air_bench.__main__
evaluation.air_bench.arguments evaluation.air_bench.runner evaluation.beir evaluation.beir.__main__
evaluation.beir.arguments evaluation.beir.data_loader evaluation.beir.evaluator evaluation.beir.prompts
evaluation.beir.runner evaluation.bright evaluation.bright.__main__ evaluation.bright.arguments
evaluation.bright.data_loader evaluation.bright.prompts evaluation.bright.runner evaluation.bright.searcher
evaluation.custom evaluation.custom.__main__ evaluation.custom.data_loader evaluation.custom.runner
evaluation.miracl evaluation.miracl.__main__ evaluation.miracl.data_loader evaluation.miracl.runner evaluation.mkqa
evaluation.mkqa.__main__ evaluation.mkqa.data_loader evaluation.mkqa.evaluator evaluation.mkqa.runner
evaluation.mldr evaluation.mldr.__main__ evaluation.mldr.data_loader evaluation.mldr.runner evaluation.msmarco
evaluation.msmarco.__main__ evaluation.msmarco.data_loader evaluation.msmarco.runner evaluation.mteb
evaluation.mteb.__main__ evaluation.mteb.arguments evaluation.mteb.prompts evaluation.mteb.runner
evaluation.mteb.searcher finetune finetune.embedder finetune.embedder.decoder_only
finetune.embedder.decoder_only.base finetune.embedder.decoder_only.base.__main__
finetune.embedder.decoder_only.base.arguments finetune.embedder.decoder_only.base.load_model
finetune.embedder.decoder_only.base.modeling finetune.embedder.decoder_only.base.runner
finetune.embedder.decoder_only.base.trainer finetune.embedder.decoder_only.icl
finetune.embedder.decoder_only.icl.__main__ finetune.embedder.decoder_only.icl.arguments
finetune.embedder.decoder_only.icl.dataset finetune.embedder.decoder_only.icl.load_model
finetune.embedder.decoder_only.icl.modeling finetune.embedder.decoder_only.icl.runner
finetune.embedder.decoder_only.icl.trainer finetune.embedder.encoder_only finetune.embedder.encoder_only.base
finetune.embedder.encoder_only.base.__main__ finetune.embedder.encoder_only.base.modeling
finetune.embedder.encoder_only.base.runner finetune.embedder.encoder_only.base.trainer
finetune.embedder.encoder_only.m3 finetune.embedder.encoder_only.m3.__main__
finetune.embedder.encoder_only.m3.arguments finetune.embedder.encoder_only.m3.modeling
finetune.embedder.encoder_only.m3.runner finetune.embedder.encoder_only.m3.trainer finetune.reranker
finetune.reranker.decoder_only finetune.reranker.decoder_only.base finetune.reranker.decoder_only.base.__main__
finetune.reranker.decoder_only.base.arguments finetune.reranker.decoder_only.base.load_model
finetune.reranker.decoder_only.base.modeling finetune.reranker.decoder_only.base.runner
finetune.reranker.decoder_only.base.trainer finetune.reranker.decoder_only.layerwise
finetune.reranker.decoder_only.layerwise.__main__ finetune.reranker.decoder_only.layerwise.arguments
finetune.reranker.decoder_only.layerwise.configuration_minicpm_reranker
finetune.reranker.decoder_only.layerwise.load_model finetune.reranker.decoder_only.layerwise.modeling
finetune.reranker.decoder_only.layerwise.modeling_minicpm_reranker finetune.reranker.decoder_only.layerwise.runner
finetune.reranker.decoder_only.layerwise.trainer finetune.reranker.encoder_only finetune.reranker.encoder_only.base
finetune.reranker.encoder_only.base.__main__ finetune.reranker.encoder_only.base.modeling
finetune.reranker.encoder_only.base.runner finetune.reranker.encoder_only.base.trainer flag_models flag_reranker
inference inference.auto_embedder inference.auto_reranker inference.embedder inference.embedder.decoder_only
inference.embedder.decoder_only.base inference.embedder.decoder_only.icl inference.embedder.decoder_only.pseudo_moe
inference.embedder.encoder_only inference.embedder.encoder_only.base inference.embedder.encoder_only.m3
inference.embedder.model_mapping inference.reranker inference.reranker.decoder_only
inference.reranker.decoder_only.base inference.reranker.decoder_only.layerwise
inference.reranker.decoder_only.lightweight inference.reranker.decoder_only.models
inference.reranker.decoder_only.models.configuration_minicpm_reranker
inference.reranker.decoder_only.models.gemma_config inference.reranker.decoder_only.models.gemma_model
inference.reranker.decoder_only.models.modeling_minicpm_reranker inference.reranker.encoder_only
inference.reranker.encoder_only.base inference.reranker.model_mapping llm_reranker llm_reranker.evaluate
llm_reranker.finetune_for_instruction llm_reranker.finetune_for_instruction.arguments
llm_reranker.finetune_for_instruction.data llm_reranker.finetune_for_instruction.load_model
llm_reranker.finetune_for_instruction.modeling llm_reranker.finetune_for_instruction.run
llm_reranker.finetune_for_instruction.trainer llm_reranker.finetune_for_layerwise
llm_reranker.finetune_for_layerwise.arguments llm_reranker.finetune_for_layerwise.configuration_minicpm_reranker
llm_reranker.finetune_for_layerwise.data llm_reranker.finetune_for_layerwise.load_model
llm_reranker.finetune_for_layerwise.modeling llm_reranker.finetune_for_layerwise.modeling_minicpm_reranker
llm_reranker.finetune_for_layerwise.run llm_reranker.finetune_for_layerwise.trainer llm_reranker.merge
llm_reranker.merge.configuration_minicpm_reranker llm_reranker.merge.merge_base_model
llm_reranker.merge.merge_layerwise_model_from_finetuned_model
llm_reranker.merge.merge_layerwise_model_from_raw_model llm_reranker.merge.modeling_minicpm_reranker reranker
reranker.arguments reranker.data reranker.modeling reranker.run reranker.trainer utils utils.transformers_compat
visual visual.eva_clip visual.eva_clip.constants visual.eva_clip.eva_vit_model visual.eva_clip.factory
visual.eva_clip.hf_configs visual.eva_clip.hf_model visual.eva_clip.loss visual.eva_clip.model
visual.eva_clip.modified_resnet visual.eva_clip.openai visual.eva_clip.pretrained visual.eva_clip.rope
visual.eva_clip.timm_model visual.eva_clip.tokenizer visual.eva_clip.transform visual.eva_clip.transformer
visual.eva_clip.utils visual.modeling
""".split()
