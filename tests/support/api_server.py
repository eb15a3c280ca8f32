"""A server with the handlers of the test module's HANDLERS, and requests to it that are checked against its document.

A test module names this one in `pytest_plugins`.
"""

import asyncio
import json
import re
from contextlib import asynccontextmanager

import aiohttp
import jsonschema_rs
import pytest


class Api:
    """Requests to one server. `call` returns status, headers and the body, and checks it against the document."""

    def __init__(self, run, session):
        self.run, self.session, self.document = run, session, None

    async def call(self, method, path, body=None, *, checked=True, **options):
        if body is not None:
            options["json"] = body
        async with self.session.request(method, path, **options) as response:
            text = await response.read()
            is_json = response.content_type.endswith("json")
            answer = json.loads(text) if is_json and text else text
            if checked and self.document is not None:
                self.check(method, path, response, answer)
            return response.status, response.headers, answer

    def check(self, method, path, response, answer):
        template = self.template(path)
        if template is None:
            assert response.status in {404, 405}, (method, path, response.status)
            return
        described = self.document["paths"][template].get(method.lower())
        if described is None:
            assert response.status == 405
            return
        assert str(response.status) in described["responses"], f"{method} {template}: {response.status} is undocumented"
        content = described["responses"][str(response.status)].get("content", {})
        if not content:
            assert answer == b""
            return
        assert response.content_type in content
        whole = {**content[response.content_type]["schema"], "components": self.document["components"]}
        jsonschema_rs.validator_for(whole).validate(answer)

    def template(self, path):
        plain = path.partition("?")[0]
        found = [
            template
            for template in self.document["paths"]
            if re.fullmatch(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template)), plain)
        ]
        return min(found, key=lambda template: template.count("{"), default=None)

    async def until(self, job_id, *states):
        async with asyncio.timeout(15):
            while True:
                _, _, job = await self.call("GET", f"/api/jobs/{job_id}")
                if job["state"] in states:
                    return job
                await asyncio.sleep(0.02)


@pytest.fixture
def handlers(tmp_path, request):
    (tmp_path / "their_jobs.py").write_text(request.module.HANDLERS)
    return "their_jobs"


@pytest.fixture
def serving(orchestrator, database_url, handlers):
    """`async with serving(**variables) as api`: a server with the handlers above, READY, and its document."""

    @asynccontextmanager
    async def serve(*, headers=None, **env):
        env = {"DATABASE_URL": database_url, "JOBS": handlers} | env
        async with orchestrator.running("serve", env=env) as run:
            await run.phase("ready")
            async with aiohttp.ClientSession(run.url, headers=headers) as session:
                api = Api(run, session)
                _, _, api.document = await api.call("GET", "/openapi.json")
                yield api

    return serve
