"""Definitions of named benchmarks: their tasks, as the published averages count them.

Names, subsets and splits are those of the `mteb` package, so that one list serves local folders and the hub alike. The
main metrics are those of the time of the published tables: mteb has since renamed `map` to `map_at_1000` and made
accuracy the main metric of two pair classifications (`mteb_bridge.py` knows the new names).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Final

import numpy as np

from ...data.columns import normal
from ...errors import ArgumentError
from ..judged_model import JudgedModel, Kind
from ..tasks.base import Items, Scores, Task

#: Main metric of each kind in the published tables.
MAIN_METRICS: Final[Mapping[Kind, str]] = {
    "retrieval": "ndcg_at_10",
    "clustering": "v_measure",
    "pair_classification": "max_ap",
    "reranking": "map",
    "sts": "cosine_spearman",
    "summarization": "cosine_spearman",
    "classification": "accuracy",
    "bitext": "f1",
}


@dataclass(frozen=True)
class BenchmarkTask:
    """One task of a benchmark.

    Attributes:
        name: Its name in the mteb package.
        kind: What is measured.
        split: The split that counts.
        main_metric: The metric that counts, by the name of the published tables' time.
        language: Such as `en`, `zh`; "" for several.
        subset: Its subset in the mteb package, such as `en` or `zh-CN`; "" where there is only one.
        parts: Names in the mteb package of the tasks whose mean it is; () for a task of its own.
    """

    name: str
    kind: Kind
    split: str
    main_metric: str
    language: str
    subset: str = ""
    parts: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name and subset, such as `STS22-zh`: no two tasks of a benchmark share it."""
        return f"{self.name}-{self.subset}" if self.subset else self.name

    def answers_to(self, name: str) -> bool:
        """Whether a name that someone wrote means this task: with the subset or without, in any case."""
        return name.strip().lower() in (self.name.lower(), self.key.lower())


@dataclass(frozen=True)
class Benchmark:
    """A list of tasks whose scores are averaged.

    Attributes:
        name: As on the command line.
        title: For people.
        tasks: In the order of the kinds' columns.
    """

    name: str
    title: str
    tasks: tuple[BenchmarkTask, ...]

    def __iter__(self) -> Iterator[BenchmarkTask]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def weights(self) -> dict[Kind, int]:
        """Number of tasks of each kind, in the order of the columns."""
        return dict(Counter(task.kind for task in self.tasks))

    def label(self, task: BenchmarkTask) -> str:
        """Name of a task in reports: without its subset where the benchmark has only that one."""
        return task.name if sum(task.name == other.name for other in self.tasks) == 1 else task.key

    def select(self, names: Iterable[str] | None) -> tuple[BenchmarkTask, ...]:
        """The tasks of these names, in the benchmark's order; None for all.

        Raises:
            ArgumentError: the benchmark has no such task.
        """
        if names is None:
            return self.tasks
        wanted = list(names)
        for name in wanted:
            if not any(task.answers_to(name) for task in self.tasks):
                known = ", ".join(dict.fromkeys(task.name for task in self.tasks))
                raise ArgumentError(f"benchmark {self.name} has no task {name!r}; it has {known}")
        return tuple(task for task in self.tasks if any(task.answers_to(name) for name in wanted))


def benchmark(name: str) -> Benchmark:
    """The benchmark of a name, in any case.

    Raises:
        ArgumentError: there is no such benchmark; the message lists those there are.
    """
    found = BENCHMARKS.get(name.strip().lower().replace("_", "-"))
    if found is None:
        listed = ", ".join(f"{known} ({entry.title}, {len(entry)} tasks)" for known, entry in BENCHMARKS.items())
        raise ArgumentError(f"there is no benchmark {name!r}; choose one of {listed}")
    return found


def _tasks(kind: Kind, names: str, *, split: str = "test", language: str) -> tuple[BenchmarkTask, ...]:
    """Tasks of one kind from their names; `Name:subset` where the mteb package has several subsets."""
    made = []
    for entry in names.split():
        name, _, subset = entry.partition(":")
        parts = CQADUPSTACK if name == "CQADupstackRetrieval" else ()
        made.append(BenchmarkTask(name, kind, split, MAIN_METRICS[kind], language, subset, parts))
    return tuple(made)


#: The forums of CQADupStack: their mean counts as one dataset.
CQADUPSTACK: Final = tuple(
    f"CQADupstack{forum}Retrieval"
    for forum in (
        "Android", "English", "Gaming", "Gis", "Mathematica", "Physics", "Programmers", "Stats", "Tex", "Unix",
        "Webmasters", "Wordpress",
    )
)  # fmt: skip
#: BEIR as far as it is public: the retrieval column of MTEB. Source: arXiv 2104.08663, 2210.07316.
_BEIR: Final = (
    *_tasks(
        "retrieval",
        "ArguAna ClimateFEVER CQADupstackRetrieval DBPedia FEVER FiQA2018 HotpotQA",
        language="en",
    ),
    # The test judgements of MS MARCO are not public.
    *_tasks("retrieval", "MSMARCO", split="dev", language="en"),
    *_tasks("retrieval", "NFCorpus NQ QuoraRetrieval SCIDOCS SciFact Touche2020 TRECCOVID", language="en"),
)
_MTEB_EN: Final = (
    *_BEIR,
    *_tasks(
        "clustering",
        "ArxivClusteringP2P ArxivClusteringS2S BiorxivClusteringP2P BiorxivClusteringS2S MedrxivClusteringP2P "
        "MedrxivClusteringS2S RedditClustering RedditClusteringP2P StackExchangeClustering "
        "StackExchangeClusteringP2P TwentyNewsgroupsClustering",
        language="en",
    ),
    *_tasks("pair_classification", "SprintDuplicateQuestions TwitterSemEval2015 TwitterURLCorpus", language="en"),
    *_tasks("reranking", "AskUbuntuDupQuestions MindSmallReranking SciDocsRR StackOverflowDupQuestions", language="en"),
    *_tasks("sts", "BIOSSES SICK-R STS12 STS13 STS14 STS15 STS16 STS17:en-en STS22:en STSBenchmark", language="en"),
    *_tasks("summarization", "SummEval", language="en"),
    *_tasks(
        "classification",
        "AmazonCounterfactualClassification:en AmazonPolarityClassification AmazonReviewsClassification:en "
        "Banking77Classification EmotionClassification ImdbClassification MassiveIntentClassification:en "
        "MassiveScenarioClassification:en MTOPDomainClassification:en MTOPIntentClassification:en "
        "ToxicConversationsClassification TweetSentimentExtractionClassification",
        language="en",
    ),
)
#: C-MTEB's own 31 datasets and the four of MTEB with a Chinese part that its average counts too. Source: arXiv
#: 2309.07597 and the averages of the table itself.
_C_MTEB: Final = (
    *_tasks(
        "retrieval",
        "T2Retrieval MMarcoRetrieval DuRetrieval CovidRetrieval CmedqaRetrieval EcomRetrieval MedicalRetrieval "
        "VideoRetrieval",
        split="dev",
        language="zh",
    ),
    *_tasks("sts", "ATEC BQ LCQMC PAWSX STSB", language="zh"),
    *_tasks("sts", "AFQMC", split="validation", language="zh"),
    *_tasks("sts", "QBQTC STS22:zh", language="zh"),
    *_tasks("pair_classification", "Ocnli Cmnli", split="validation", language="zh"),
    *_tasks("classification", "TNews IFlyTek MultilingualSentiment", split="validation", language="zh"),
    *_tasks(
        "classification",
        "JDReview OnlineShopping Waimai AmazonReviewsClassification:zh MassiveIntentClassification:zh-CN "
        "MassiveScenarioClassification:zh-CN",
        language="zh",
    ),
    *_tasks("reranking", "T2Reranking MMarcoReranking", split="dev", language="zh"),
    *_tasks("reranking", "CMedQAv1-reranking CMedQAv2-reranking", language="zh"),
    *_tasks("clustering", "CLSClusteringS2S CLSClusteringP2P ThuNewsClusteringS2S ThuNewsClusteringP2P", language="zh"),
)
#: The passage task on its development queries and on those of TREC's deep learning tracks.
_MSMARCO: Final = (
    *_tasks("retrieval", "MSMARCO", split="dev", language="en"),
    *_tasks("retrieval", "TRECDL2019 TRECDL2020", language="en"),
)
_MIRACL_LANGUAGES: Final = "ar bn de en es fa fi fr hi id ja ko ru sw te th yo zh"
_MIRACL: Final = tuple(
    task
    for language in _MIRACL_LANGUAGES.split()
    for task in _tasks("retrieval", f"MIRACLRetrieval:{language}", split="dev", language=language)
)


def _named(entries: Sequence[Benchmark]) -> dict[str, Benchmark]:
    return {entry.name: entry for entry in entries}


#: All named benchmarks by name.
BENCHMARKS: Final[Mapping[str, Benchmark]] = _named(
    (
        Benchmark("mteb-en", "MTEB, English", _MTEB_EN),
        Benchmark("c-mteb", "C-MTEB, Chinese", _C_MTEB),
        Benchmark("beir", "BEIR", _BEIR),
        Benchmark("msmarco", "MS MARCO passages", _MSMARCO),
        Benchmark("miracl", "MIRACL", _MIRACL),
    )
)
_NAMES: Final = frozenset(
    name.lower() for entry in BENCHMARKS.values() for task in entry for name in (task.name, *task.parts)
)


def is_named(name: str) -> bool:
    """Whether a task of some benchmark has this name, in any case."""
    return name.lower() in _NAMES


#: A line for each task: its name, and the other names of its data.
_HUB_NAMES: Final = """
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


_TASKS: Final[Mapping[str, str]] = {
    **{normal(name): line.split()[0] for line in _HUB_NAMES.strip().splitlines() for name in line.split()},
    **{normal(name.removesuffix("Retrieval")): name for name in CQADUPSTACK},
}


def task_called(name: str) -> str:
    """The task whose data has this name, such as FiQA2018 for `fiqa`; a name that is none of these comes back as it is.

    Args:
        name: Of a folder or repository, without its owner.
    """
    return _TASKS.get(normal(name), name)


def names_of(task: str) -> set[str]:
    """The names, as `normal` spells them, of a task's data, its own among them."""
    return {normal(task), *(name for name, own in _TASKS.items() if own == task)}


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
    """Peculiarities of MTEB's protocol for a task, as fields of our task classes.

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


@dataclass(frozen=True, kw_only=True)
class MeanTask(Task):
    """Retrieval tasks whose mean counts as one dataset (the forums of CQADupStack).

    Attributes:
        parts: The tasks.
    """

    kind: ClassVar[Kind] = "retrieval"
    rerankable: ClassVar[bool] = True

    parts: Sequence[Task]

    @property
    def notes(self) -> tuple[str, ...]:
        """The parts' notes, each after the part's name."""
        return (*self.remarks, *(f"{part.name}: {note}" for part in self.parts for note in part.notes))

    def content(self) -> Iterable[object]:
        """The parts' fingerprints."""
        return [part.fingerprint for part in self.parts]

    def score(self, model: JudgedModel) -> Scores:
        """Measure each part; metrics are means over parts, items are the parts' items."""
        return mean_scores([part.score(model) for part in self.parts], [part.name for part in self.parts])


def mean_scores(parts: Sequence[Scores], names: Sequence[str]) -> Scores:
    """Means of metrics over parts. An item counts as much as its share in the mean of its part.

    Args:
        parts: Scores whose main metric is a mean over items.
        names: Of the parts.
    """
    shared = [name for name in parts[0].metrics if all(name in part.metrics for part in parts)]
    metrics = {name: float(np.mean([part.metrics[name] for part in parts])) for name in shared}
    total = sum(len(part.items.ids) for part in parts)
    values = [part.items.columns["value"] * total / (len(parts) * len(part.items.ids)) for part in parts]
    ids = [f"{name}/{item}" for name, part in zip(names, parts, strict=True) for item in part.items.ids]
    texts = [text for part in parts for text in part.items.texts]
    groups: list[int | str] = []
    for name, part in zip(names, parts, strict=True):
        own = part.items.ids if part.items.groups is None else part.items.groups
        groups += [f"{name}/{group}" for group in own]
    items = Items(ids, "mean", {"value": np.concatenate(values)}, texts if len(texts) == len(ids) else (), groups)
    return Scores(metrics, items, {"parts": {name: part.metrics for name, part in zip(names, parts, strict=True)}})
