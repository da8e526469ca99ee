"""Where MTEB's protocol for a named task differs from that of its kind.

Source: the task classes of the `mteb` package, 2.x (attributes `samples_per_label`, `n_experiments`,
`ignore_identical_ids`), text tasks only. A task with a version, such as `TNews.v2`, is run as the first version is.
"""

from __future__ import annotations

import re
from typing import Any, Final

from .hub_names import task_called

#: Texts drawn of each label, where they are not 8.
_SAMPLES_PER_LABEL: Final = {
    16: """
        AngryTweetsClassification CzechProductReviewSentimentClassification CzechSoMeSentimentClassification
        DKHateClassification DalajClassification DanishPoliticalCommentsClassification EmotionClassification
        EstonianValenceClassification HUMEEmotionClassification HUMEToxicConversationsClassification
        LccSentimentClassification ToxicConversationsClassification
    """,
    20: "CSFDCZMovieReviewSentimentClassification CSFDSKMovieReviewSentimentClassification",
    32: """
        AfriSentiLangClassification AmazonCounterfactualClassification DeepSentiPers DigikalamagClassification
        DutchGovernmentBiasClassification FaIntentClassification HUMETweetSentimentExtractionClassification IFlyTek
        IconclassClassification JDReview MultilingualSentiment NLPTwitterAnalysisClassification
        NordicLangClassification OnlineShopping PerShopDomainClassification PerShopIntentClassification
        PersianTextEmotion SIDClassification ScalaClassification SentimentDKSF StyleClassification
        SynPerChatbotConvSAAnger SynPerChatbotConvSAFear SynPerChatbotConvSAFriendship
        SynPerChatbotConvSAHappiness SynPerChatbotConvSAJealousy SynPerChatbotConvSALove
        SynPerChatbotConvSASadness SynPerChatbotConvSASatisfaction SynPerChatbotConvSASurprise
        SynPerChatbotConvSAToneChatbotClassification SynPerChatbotConvSAToneUserClassification
        SynPerChatbotRAGToneChatbotClassification SynPerChatbotRAGToneUserClassification
        SynPerChatbotSatisfactionLevelClassification SynPerChatbotToneChatbotClassification
        SynPerChatbotToneUserClassification SynPerTextToneClassification TNews
        TweetSentimentExtractionClassification Waimai YahooAnswersTopicsClassification
        YueOpenriceReviewClassification
    """,
    128: "DutchColaClassification YelpReviewFullClassification",
}

#: Draws, where they are not 10.
_EXPERIMENTS: Final = {5: "IFlyTek"}

#: Retrieval in which a document that has the id of the query does not count: most often it is the query itself.
_SKIP_IDENTICAL_IDS: Final = """
    ArguAna ArguAna-Fa ArguAna-NL ArguAna-PL BSARDRetrieval DanFEVER EcomRetrieval FEVER FEVER-FaHardNegatives FEVER-NL
    FEVERHardNegatives FeedbackQARetrieval FiQA-PL FiQA2018 FiQA2018-Fa FiQA2018-NL FiQADecontaminated IFIRFiQA
    JaCWIRRetrieval JaGovFaqsRetrieval LegalQANLRetrieval MLQuestions MMarcoRetrieval MMarcoRetrievalMultilingual
    MSMARCO MSMARCO-Fa MSMARCO-FaHardNegatives MSMARCO-PL MSMARCO-PLHardNegatives MSMARCOHardNegatives MedicalRetrieval
    NLPJournalAbsArticleRetrieval PersianWebDocumentRetrieval Quora-NL QuoraRetrieval QuoraRetrieval-Fa
    QuoraRetrievalDecontaminated QuoraRetrievalHardNegatives RiaNewsRetrieval RiaNewsRetrievalHardNegatives
    RuBQRetrieval RuSciBenchCiteRetrieval RuSciBenchCociteRetrieval SynPerChatbotRAGFAQRetrieval
    SynPerChatbotRAGTopicsRetrieval SynPerChatbotTopicsRetrieval SynPerQARetrieval T2Retrieval TRECDL2019 TRECDL2020
    VideoRetrieval bBSARDNLRetrieval mMARCO-NL
"""

#: Reranking in which queries whose ids differ only behind the last `_` are one: of its scores with each, a document has
#: the best.
_MERGE_SUBQUERIES: Final = "MindSmallReranking"

_VERSION: Final = re.compile(r"\.v\d+$", re.IGNORECASE)


def protocol_of(name: str) -> dict[str, Any]:
    """What MTEB does differently for a task, as fields of our task classes.

    Args:
        name: Its name in the mteb package, in any case, or that of its data on the hub or in BEIR's downloads.

    Returns:
        `samples_per_label` and `experiments` (classification), `skip_identical_ids` (retrieval) or `merge_subqueries`
        (reranking), each only where it is not the default of the class; empty for a name that MTEB does not know.
    """
    return dict(_FACTS.get(task_called(_VERSION.sub("", name.strip())).lower(), {}))


def _facts() -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for field, by_value in (
        ("samples_per_label", _SAMPLES_PER_LABEL),
        ("experiments", _EXPERIMENTS),
        ("skip_identical_ids", {True: _SKIP_IDENTICAL_IDS}),
        ("merge_subqueries", {True: _MERGE_SUBQUERIES}),
    ):
        for value, names in by_value.items():
            for name in names.lower().split():
                facts.setdefault(name, {})[field] = value
    return facts


_FACTS: Final = _facts()
