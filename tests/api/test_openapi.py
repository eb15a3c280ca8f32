"""The document and the answers are made of the same types: no answer holds a field that the document does not name."""

import json

from orchestrator.api import openapi, routing
from orchestrator.api.health import health
from orchestrator.lifecycle import Lifecycle


def schema_of(document, name):
    return document["components"]["schemas"][name]


def unknown_fields(document, schema, value, path="$"):
    """Fields of the value that its schema does not name, at any depth."""
    if "$ref" in schema:
        return unknown_fields(document, schema_of(document, schema["$ref"].rpartition("/")[2]), value, path)
    if "anyOf" in schema:
        tried = [unknown_fields(document, one, value, path) for one in schema["anyOf"]]
        return min(tried, key=len)
    if isinstance(value, dict) and "properties" in schema:
        found = [f"{path}.{key}" for key in value if key not in schema["properties"]]
        for key in value.keys() & schema["properties"].keys():
            found += unknown_fields(document, schema["properties"][key], value[key], f"{path}.{key}")
        return found
    if isinstance(value, list) and "items" in schema:
        return [
            one
            for n, item in enumerate(value)
            for one in unknown_fields(document, schema["items"], item, f"{path}[{n}]")
        ]
    return []


async def test_every_answer_of_a_live_server_has_the_fields_that_the_document_names(orchestrator, database_url):
    async with orchestrator.running("serve", env={"DATABASE_URL": database_url}) as run:
        await run.phase("ready")
        document = (await run.get("/openapi.json")).body
        looked_at = 0
        for path, methods in document["paths"].items():
            answers = methods.get("get", {}).get("responses", {})
            content = answers.get("200", {}).get("content", {}).get("application/json")
            if content is None or "{" in path:
                continue
            body = (await run.get(path)).body
            assert unknown_fields(document, content["schema"], body) == [], path
            looked_at += 1
    assert looked_at > 12


def test_every_operation_says_by_its_annotation_what_it_answers():
    operations = (*routing.operations(), *openapi.ELSEWHERE)
    for operation in operations:
        assert operation.is_stream or operation.body_type is not None, operation.path
    document = openapi.build(operations, None)
    told = schema_of(document, "Health")["properties"].keys()
    assert {"started_at", "migrations", "failure"} <= told
    assert "activity" in schema_of(document, "HealthMigrations")["properties"]
    assert "applied_at" in schema_of(document, "FindingFacts")["properties"]
    life = Lifecycle(now=lambda: 0.0, monotonic=lambda: 0.0)
    assert set(health(life).__struct_fields__) == set(told)
    assert json.dumps(document)
