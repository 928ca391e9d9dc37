"""Test the local page: what it compares, that nothing on it can run as code, and the page itself in a real browser."""

import re
import shutil
import socket

import pytest
import toy_parts
from cli_parts import fails, run
from skill_parts import skill_tokens

from chroma_spring_rag import ChromaQA, Passage, connect_folder, index_files, open_or_create_collection
from spring_rag import SpringModel, VirtualTokens
from spring_rag.playground.cards import answerable_html, passages_html, prompt_html, replies_html
from spring_rag.playground.page import build, launch
from spring_rag.playground.ways import Reply, ShownPrompt, Way, answer_ways, shown_prompt, ways_of

ATTACK = "<img src=x onerror=alert(1)></div><script>alert(2)</script>"
QUESTION = toy_parts.ASKED[0]
PASSAGES = [toy_parts.text_of(question) for question in toy_parts.ASKED]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    folder = tmp_path_factory.mktemp("playground") / "index"
    documents = tmp_path_factory.mktemp("documents")
    for number, text in enumerate(toy_parts.TEXTS):
        (documents / f"{number}.txt").write_text(text, encoding="utf-8")
    (documents / "attack.txt").write_text(f"{QUESTION.question} {ATTACK}", encoding="utf-8")
    collection = open_or_create_collection(connect_folder(folder, create=True), "documents")
    index_files(collection, [documents])
    return folder, collection


class TestWays:
    def test_the_plain_backbone_each_k_that_there_is_and_further_sets(self, toy_model):
        toy_model.add_tokens("second", toy_parts.TOKENS)
        n = len(toy_model.backend.tokens(None))
        ways = ways_of(toy_model, ["second"], [0, 1, n + 1])
        assert [way.label for way in ways] == ["plain", "k = 1", f"k = {n}", f"second, k = {n}"]

    def test_each_answers_as_it_does_alone(self, toy_model):
        ways = ways_of(toy_model, [], [1])
        *_, last = answer_ways(toy_model, QUESTION.question, PASSAGES, ways, toy_parts.MAX_TOKENS)
        alone = [
            toy_model.answer(
                QUESTION.question,
                PASSAGES,
                num_tokens=way.num_tokens,
                template=toy_model.template(way.tokens),
                max_new_tokens=toy_parts.MAX_TOKENS,
            )
            for way in ways
        ]
        assert [reply.text for reply in last] == alone
        assert all(reply.generated for reply in last)

    def test_pieces_arrive_while_it_is_written(self, toy_model):
        states = list(answer_ways(toy_model, QUESTION.question, PASSAGES, [Way(None, 0)], 8))
        assert len(states) > 2
        assert states[0][0].generated is None
        assert states[-1][0].text.startswith(states[0][0].text)

    def test_one_that_fails_says_why_and_the_others_go_on(self, toy_model):
        ways = [Way("default", 10**6), Way(None, 0)]
        *_, last = answer_ways(toy_model, QUESTION.question, PASSAGES, ways, 4)
        assert "num_tokens is 1000000" in last[0].error
        assert last[1].generated

    def test_the_prompt_is_shown_around_its_slot(self, toy_model):
        shown = shown_prompt(toy_model, QUESTION.question, PASSAGES, Way("default", 2), 8)
        assert PASSAGES[0].split()[0] in shown.context
        assert shown.virtual == 2
        assert QUESTION.question.split()[-1] in shown.suffix


class TestCards:
    def test_nothing_that_a_document_or_a_model_writes_runs(self):
        replies = [Reply(Way(ATTACK, 1), ATTACK), Reply(Way(None, 0), error=ATTACK)]
        passage = Passage(text=ATTACK, source=ATTACK, score=0.5)
        shown = ShownPrompt(ATTACK, 1, ATTACK, 1)
        for html in (replies_html(replies), passages_html([passage]), prompt_html(shown)):
            assert "<img" not in html
            assert "<script" not in html
            assert "&lt;img" in html

    def test_cited_passages_are_lit_up(self):
        passages = [Passage(text=text, source="a.md", score=0.5) for text in ("one", "two")]
        assert re.findall(r'class="(passage[^"]*)"', passages_html(passages, [2])) == [
            "passage",
            "passage cited",
        ]

    def test_answerability_is_a_bar(self):
        assert "width: 25%" in answerable_html(0.25)


class TestCommand:
    def test_a_set_needs_a_name(self, database):
        assert "NAME=TOKENS" in fails("playground", "--db", database[0], "--also", "tokens", code=2)

    def test_a_missing_database_is_said_before_anything_loads(self, tmp_path):
        assert "nothing" in fails("playground", "--db", tmp_path / "nothing")

    def test_a_skill_is_attached_before_the_page_opens(self, database, tmp_path):
        named = ["playground", "--db", database[0], *toy_parts.NAMED]
        for width, said in ((8, "8"), (None, "can't listen")):
            tokens = VirtualTokens.from_pretrained(toy_parts.TOKENS)
            matrix = tokens.matrix if width is None else tokens.matrix[:, :width]
            skill_tokens("cite", VirtualTokens(matrix)).save_pretrained(tmp_path / f"cite-{width}")
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                told = fails(*named, "--skill", tmp_path / f"cite-{width}", "--page-port", port)
            assert said in told

    def test_a_taken_port_is_one_line(self, database):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            done = run("playground", "--db", database[0], *toy_parts.NAMED, "--page-port", port)
        assert done.returncode == 1
        assert f"can't listen at 127.0.0.1:{port}" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def browser():
    """A real Chromium without a window; skips, visibly, where none is installed."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("needs a Chromium on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.timeout(120)
class TestPage:
    def test_answers_stand_side_by_side_and_a_hostile_document_stays_text(self, browser, database, toy_model):
        page = build(ChromaQA(toy_model, database[1], top_k=3), ways_of(toy_model, [], [1]))
        address = launch(page, "127.0.0.1", free_port(), block=False)
        try:
            tab = browser.new_page()
            shown: list[str] = []
            tab.on("dialog", lambda dialog: (shown.append(dialog.message), dialog.dismiss()))
            strangers: list[str] = []
            tab.on("request", lambda request: strangers.append(request.url))
            tab.goto(address)
            tab.get_by_label("Question").fill(QUESTION.question)
            tab.get_by_role("button", name="Ask").click()
            cards = tab.locator(".reply")
            n = len(toy_model.backend.tokens(None))
            tab.wait_for_function(
                f"[...document.querySelectorAll('.reply')].filter(r => r.innerText.includes('tokens')).length == {3}"
            )
            assert QUESTION.answer in cards.nth(2).inner_text()
            assert f"k = {n}" in cards.nth(2).inner_text()
            assert "alert(1)" in tab.locator("#passages").inner_text()
            tab.get_by_text("The prompt of the last way").click()
            tab.locator(".slot").wait_for()
            assert tab.locator(".slot").inner_text() == f"{n} virtual tokens"
            assert not shown
            assert not [url for url in strangers if not url.startswith((address, "data:", "blob:"))]
        finally:
            page.close()

    def test_what_skills_say_is_a_bar_and_lit_passages(self, browser, database):
        model = SpringModel.from_pretrained(toy_parts.BACKBONE, tokens=toy_parts.TOKENS)
        for task in ("answerable", "cite"):
            model.add_skill(skill_tokens(task, VirtualTokens.from_pretrained(toy_parts.TOKENS)))
        told = model.ask(
            QUESTION.question,
            [each.text for each in ChromaQA(model, database[1]).retrieve(QUESTION.question)],
        )
        page = build(ChromaQA(model, database[1]), [Way(None, 0)])
        address = launch(page, "127.0.0.1", free_port(), block=False)
        try:
            tab = browser.new_page()
            tab.goto(address)
            tab.get_by_label("Question").fill(QUESTION.question)
            tab.get_by_role("button", name="Ask").click()
            tab.locator("#answerable b").wait_for()
            assert tab.locator("#answerable b").inner_text() == f"{100 * told.answerable:.0f} %"
            widths = [tab.locator(each).bounding_box()["width"] for each in (".bar div", ".bar")]
            assert widths[0] / widths[1] == pytest.approx(told.answerable, abs=0.01)
            assert tab.locator(".passage.cited").count() == len(told.citations)
        finally:
            page.close()

    def test_an_empty_question_is_told_about(self, browser, database, toy_model):
        page = build(ChromaQA(toy_model, database[1]), ways_of(toy_model, [], [1]))
        address = launch(page, "127.0.0.1", free_port(), block=False)
        try:
            tab = browser.new_page()
            tab.goto(address)
            tab.get_by_role("button", name="Ask").click()
            tab.get_by_text("The question is empty.").first.wait_for()
        finally:
            page.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
