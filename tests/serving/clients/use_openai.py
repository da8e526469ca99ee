from answers import GIVEN, KEY, NAME, QUERIES, TEXTS, URL, done, lists, note
from openai import BadRequestError, OpenAI

client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)


def created(model, **options):
    answer = client.embeddings.create(model=model, input=options.pop("input", TEXTS), **options)
    assert answer.usage.total_tokens > 0 and answer.model == model
    return lists(each.embedding for each in answer.data)


note("embeddings.create (base64)", "plain exactly", created(NAME))
note('embeddings.create(encoding_format="float")', "plain exactly", created(NAME, encoding_format="float"))
note('embeddings.create(model="NAME:query")', "query", created(f"{NAME}:query", input=QUERIES))
note('embeddings.create(model="NAME:document")', "document", created(f"{NAME}:document"))
note("embeddings.create(dimensions=all)", "plain exactly", created(NAME, dimensions=GIVEN["dimension"], user="me"))
note("embeddings.create(input=str)", "first exactly", created(NAME, input=TEXTS[0]))
raw = client.post(
    "/embeddings", body={"model": NAME, "input": TEXTS, "encoding_format": None, "drop_params": True}, cast_to=object
)
note("null and unknown fields", "plain exactly", [each["embedding"] for each in raw["data"]])
try:
    client.embeddings.create(model=NAME, input=[[15339, 1917]])
except BadRequestError as error:
    note("token ids", "message", error.message)
try:
    client.embeddings.create(model=NAME, input="a", dimensions=7)
except BadRequestError as error:
    note("embeddings.create(dimensions=7)", "message", error.message)
note("models.list", "names", [each.id for each in client.models.list()])
note("models.retrieve", "names", [client.models.retrieve(f"{NAME}:query").id])
done("openai")
