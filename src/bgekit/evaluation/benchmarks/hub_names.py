"""What the data of named tasks is called: the task's own name, its repository on the hub, its folder in BEIR.

Sources: `metadata.dataset["path"]` of the task classes of the `mteb` package, 2.x and 1.x, and the downloads of `beir`.
Names that differ from the task's own only in case, `-` or `_` are not listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .named import CQADUPSTACK

#: A line for each task: its name, and the other names of its data.
_NAMES: Final = """
    TRECCOVID trec-covid trec-covid-v2
    FiQA2018 fiqa
    QuoraRetrieval quora
    ClimateFEVER climate-fever-v2
    CQADupstackRetrieval cqadupstack
    DBPedia dbpedia-entity
    Touche2020 webis-touche2020 touche2020-v2
    TRECDL2019 trec-dl-2019
    TRECDL2020 trec-dl-2020
    SprintDuplicateQuestions sprintduplicatequestions-pairclassification
    TwitterSemEval2015 twittersemeval2015-pairclassification
    TwitterURLCorpus twitterurlcorpus-pairclassification
    AskUbuntuDupQuestions askubuntudupquestions-reranking
    MindSmallReranking mind_small
    SciDocsRR scidocs-reranking
    StackOverflowDupQuestions stackoverflowdupquestions-reranking
    BIOSSES biosses-sts
    SICK-R sickr-sts
    STS12 sts12-sts
    STS13 sts13-sts
    STS14 sts14-sts
    STS15 sts15-sts
    STS16 sts16-sts
    STS17 sts17-crosslingual-sts
    STS22 sts22-crosslingual-sts
    STSBenchmark stsbenchmark-sts
    AmazonCounterfactualClassification amazon_counterfactual
    AmazonPolarityClassification amazon_polarity
    AmazonReviewsClassification amazon_reviews_multi
    Banking77Classification banking77
    EmotionClassification emotion
    ImdbClassification imdb
    MassiveIntentClassification amazon_massive_intent
    MassiveScenarioClassification amazon_massive_scenario
    MTOPDomainClassification mtop_domain
    MTOPIntentClassification mtop_intent
    ToxicConversationsClassification toxic_conversations_50k
    TweetSentimentExtractionClassification tweet_sentiment_extraction
    TNews TNews-classification
    IFlyTek IFlyTek-classification
    MultilingualSentiment MultilingualSentiment-classification
    JDReview JDReview-classification
    OnlineShopping OnlineShopping-classification
    Waimai waimai-classification
    MMarcoReranking Mmarco-reranking
"""


def folded(name: str) -> str:
    """A name without what its spellings differ in: `T2-Reranking` and `t2_reranking` are `T2Reranking`."""
    return re.sub(r"[ _-]", "", name).lower()


_TASKS: Final[Mapping[str, str]] = {
    **{folded(name): line.split()[0] for line in _NAMES.strip().splitlines() for name in line.split()},
    **{folded(name.removesuffix("Retrieval")): name for name in CQADUPSTACK},
}


def task_called(name: str) -> str:
    """The task whose data has this name, such as FiQA2018 for `fiqa`; a name that is none of these comes back as it is.

    Args:
        name: Of a folder or repository, without its owner.
    """
    return _TASKS.get(folded(name), name)


def names_of(task: str) -> set[str]:
    """The `folded` names of a task's data, its own among them."""
    return {folded(task), *(name for name, own in _TASKS.items() if own == task)}
