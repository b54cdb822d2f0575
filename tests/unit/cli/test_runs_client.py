"""Calls to a server of runs: refusals, servers that are none, servers that are away for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import runs_client, runs_config
from cli.main import casemate
from cli.runs_client import Api, decisive, exit_code, job_of, refusal
from cli.runs_config import Entry
from core.errors import CasemateError, Forbidden, Invalid, NotFound, Unavailable, Upstream


@pytest.mark.parametrize(
    ("status", "told", "kind", "text"),
    [
        (400, {"detail": [{"msg": "Run not found", "code": "resource_not_exists"}]}, NotFound, "Run not found"),
        (400, {"detail": [{"msg": "In use", "code": "error"}]}, CasemateError, "In use"),
        (401, {"detail": "Not authenticated"}, Forbidden, "Not authenticated"),
        (403, {"detail": {"msg": "Access denied", "code": None}}, Forbidden, "Access denied"),
        (404, {"detail": "Not Found"}, NotFound, "Not Found"),
        (422, {"detail": [{"loc": ["body", "run_spec", "x"], "msg": "bad"}, {"loc": ["body"], "msg": "worse"}]},
         Invalid, "run_spec.x: bad; worse"),
        (418, {"error": "teapot"}, CasemateError, "status 418"),
        (418, [], CasemateError, "status 418"),
        (503, {"detail": "busy"}, Unavailable, "status 503"),
    ],
)  # fmt: skip
def test_a_refusal_keeps_its_words(
    status: int, told: Any, kind: type[CasemateError], text: str
) -> None:
    error = refusal(status, told)

    assert type(error) is kind
    assert text in error.message


@pytest.fixture
def answers() -> list[tuple[int, bytes]]:
    """What the server says, call by call; the last one again and again."""
    return []


@pytest.fixture
def api(answers: list[tuple[int, bytes]]) -> Iterator[Api]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Api(Entry("main", f"http://127.0.0.1:{server.server_port}", "token"))
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("body", [b"<html>", b"\xff", b"[]", b"{}", b"null", b""])
def test_what_is_no_server_of_runs_is_told(
    api: Api, answers: list[tuple[int, bytes]], body: bytes
) -> None:
    answers.append((200, body))

    with pytest.raises(Upstream, match="is no server of runs"):
        api.check()


COMMANDS = (
    "ps", "ps -a -v --json", "run get x", "logs x", "logs -f x", "logs x --json", "attach x --logs", "stop x -y",
    "fleet", "fleet get x", "fleet delete x -y", "offer", "offer --json", "offer --group-by gpu",
    "event", "event --since 1h --within-run x", "apply -y -f task.yml", "apply -y -f fleet.yml",
    "delete -y -f task.yml", "project list -v", "project add --name n --url {url} --token t -y",
)  # fmt: skip


@pytest.mark.parametrize("status", [200, 400, 403, 422, 500])
@pytest.mark.parametrize(
    "body",
    [
        b"null", b"[]", b"{}", b"5", b"<html>", b"[null]", b"[{}]", b'{"detail": [{}, null]}', b"[" * 5000,
        b'{"job_plans": []}', b'{"id": "1", "run_spec": {"run_name": "x"}, "jobs": [], "status": "done"}',
    ],
)  # fmt: skip
def test_whatever_answers_no_command_fails_but_with_a_sentence(
    api: Api, answers: list[tuple[int, bytes]], status: int, body: bytes,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(runs_client, "AWAY_S", 0.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.yml").write_text("type: task\nname: x\ncommands: [a]\n")
    (tmp_path / "fleet.yml").write_text("type: fleet\nname: x\nnodes: 1\n")
    runs_config.add(api.entry)
    answers.append((status, body))

    for command in COMMANDS:
        words = command.format(url=api.entry.url).split()
        done = CliRunner().invoke(casemate, words, standalone_mode=False)
        assert done.exception is None or isinstance(done.exception, CasemateError), command


def test_who_waits_bears_a_server_that_is_away_for_a_while(
    api: Api, answers: list[tuple[int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_client, "LOOK_S", 0.01)
    answers += [(502, b"<html>bad gateway"), (503, b"{}"), (200, b'{"status": "done"}')]

    assert api.wait("1", lambda run: True, lambda run: None) == {"status": "done"}

    monkeypatch.setattr(runs_client, "AWAY_S", 0.05)
    answers[:] = [(502, b"<html>")]
    with pytest.raises(Upstream):
        api.wait("1", lambda run: True, lambda run: None)


def test_the_pages_of_a_log_are_read_with_their_tokens(
    api: Api, answers: list[tuple[int, bytes]]
) -> None:
    answers += [
        (200, b'{"logs": [{"timestamp": "1", "message": "YQ=="}], "next_token": "7"}'),
        (200, b'{"logs": [{"timestamp": "1", "message": "Yg=="}], "next_token": null}'),
    ]

    assert list(api.output({"run_spec": {"run_name": "x"}}, "id")) == [b"a", b"b"]


def test_a_token_or_a_name_that_cannot_be_sent_is_refused() -> None:
    for token in ("", "two words", "line\nbreak", "naïve"):
        with pytest.raises(Invalid, match="token"):
            Entry("main", "http://x", token)
    with pytest.raises(Invalid, match="name"):
        Entry("", "http://x", "t")
    assert "secret" not in repr(Entry("main", "http://x", "secret"))


def job(num: int, replica: int, status: str, code: int | None = None) -> Any:
    return {
        "job_spec": {"job_num": num, "replica_num": replica},
        "job_submissions": [{"status": "failed", "exit_status": 9}, {"status": status, "exit_status": code}],
    }  # fmt: skip


def test_a_job_is_found_by_its_numbers_and_of_replicas_one_that_runs() -> None:
    run = {"jobs": [job(0, 0, "failed"), job(0, 1, "running"), job(1, 1, "done")]}

    assert job_of(run) == run["jobs"][1]
    assert job_of(run, 0, 0) == run["jobs"][0]
    assert job_of(run, 1) == run["jobs"][2]
    with pytest.raises(NotFound, match="no job 2$"):
        job_of(run, 2)
    with pytest.raises(NotFound, match="no job 1 in replica 0"):
        job_of(run, 1, 0)


@pytest.mark.parametrize(
    ("status", "jobs", "code"),
    [
        ("done", [job(0, 0, "done", 0)], 0),
        ("failed", [job(0, 0, "failed", 7)], 7),
        ("failed", [job(0, 0, "failed", None)], 1),
        ("terminated", [job(0, 0, "terminated", 143)], 143),
        ("failed", [job(0, 0, "done", 0), job(1, 0, "failed", 3)], 3),
        ("failed", [job(0, 0, "terminated", 143), job(1, 0, "failed", 3)], 3),
    ],
)
def test_the_exit_code_is_that_of_the_job_that_ended_the_run(
    status: str, jobs: list[Any], code: int
) -> None:
    run = {"status": status, "jobs": jobs}

    assert exit_code(run, decisive(run)) == code


def test_the_exit_code_of_a_job_that_was_chosen_is_its_own() -> None:
    run = {"status": "failed", "jobs": [job(0, 0, "terminated", 143), job(1, 0, "failed", 3)]}

    assert exit_code(run, job_of(run, 0)) == 143
