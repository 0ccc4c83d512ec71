"""The chat page in a real browser, against a real server of a tiny model."""

from __future__ import annotations

import contextlib
import re

import pytest

from glm_jax.serve.page import content_policy, page_response
from tests.serve.browser import PHONE, ChatPage, chromium, needs_chromium
from tests.serve.scripted import ScriptedRows, script
from tests.serve.server import idle, running, served_of, slow_down, started, wait_for
from tests.text.every import tiny_tokenizer

TOKENIZER = tiny_tokenizer("glm-4-9b")
LONG = "\n" + "The file reads a buffer. " * 60


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@contextlib.contextmanager
def opened(monkeypatch, browser, *replies: str, pause: float = 0.0, keys=(), **options):
    """The page of a server whose model says these, and its engine."""
    script(monkeypatch, TOKENIZER, *replies)
    if pause:
        slow_down(monkeypatch, pause, ScriptedRows)
    engine_options = {key: options.pop(key) for key in ("slots", "most_waiting") if key in options}
    with (
        started(length=2048, burst=0.0, **engine_options) as engine,
        running(engine, served_of(length=2048), keys=keys) as url,
    ):
        page = ChatPage(browser, url, **options)
        yield page, engine
        page.context.close()
        assert not page.failures


def test_nothing_from_outside_and_no_script_but_its_own():
    response = page_response()
    page, policy = response.body.decode(), response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "trusted-types 'none'" in policy
    assert policy != content_policy(page.replace("'use strict'", "alert(1)"))
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)
    assert "innerHTML" not in page and " style=" not in page


@needs_chromium
def test_a_question_and_its_answer_of_the_model_itself(browser, engine, url):
    page = ChatPage(browser, url)
    page.settings(Longest_answer="20", Temperature="0")
    with page.page.expect_request("**/v1/chat/completions") as asked:
        page.send("The file")
    assert asked.value.post_data_json["temperature"] == 0
    page.ended()
    [answer] = page.answers()
    assert answer.strip() and page.questions() == ["The file"]
    assert page.box.input_value() == ""
    assert page.page.get_by_text("20 tokens").count() == 1
    assert page.page.get_by_text("reached its longest length").count()
    page.button("Retry").click()
    page.ended()
    assert page.answers() == [answer]  # temperature 0
    assert all(address.startswith((url, "data:")) for address in page.asked)
    assert not page.failures
    page.context.close()
    wait_for(lambda: idle(engine))


@needs_chromium
def test_an_answer_is_seen_while_it_is_written_and_can_be_stopped(monkeypatch, browser):
    with opened(monkeypatch, browser, LONG, LONG, "\nWell.", pause=0.01) as (page, engine):
        by_hand = page.button("Stop the answer").click
        for stop in (by_hand, lambda: page.page.keyboard.press("Escape")):
            page.send("Tell me more.")
            page.written(40)
            assert page.button("Retry").count() == 0
            stop()
            page.ended()
            wait_for(lambda: idle(engine))  # the slot is free again
            assert 40 < len(page.answers()[-1]) < len(LONG) - 100
            assert page.page.get_by_text("You stopped this answer.").count()
        page.button("Retry").click()
        page.page.get_by_text("Well.", exact=True).first.wait_for()
        assert len(page.answers()) == 2 and page.answers()[-1] == "Well."


@needs_chromium
def test_history_survives_a_reload_and_goes_to_the_model(monkeypatch, browser):
    with opened(monkeypatch, browser, "\nOne.", "\nTwo.", "\nThree.") as (page, _):
        page.settings(System_prompt="Count.")
        page.send("first")
        page.ended()
        page.page.reload()
        assert page.answers() == ["One."]
        with page.page.expect_request("**/v1/chat/completions") as asked:
            page.send("second")
        page.ended()
        said = [(m["role"], m["content"]) for m in asked.value.post_data_json["messages"]]
        assert said == [
            ("system", "Count."),
            ("user", "first"),
            ("assistant", "One."),
            ("user", "second"),
        ]
        page.button("New conversation").click()
        assert page.answers() == []
        page.send("third")
        page.ended()
        assert page.answers() == ["Three."]
        page.button("first").click()
        assert page.answers() == ["One.", "Two."]
        page.button("Delete: first").click()
        assert page.answers() == [] and page.button("first").count() == 0
        page.button("Undo").click()
        assert page.answers() == ["One.", "Two."]
        page.button("Edit").last.click()
        assert page.box.input_value() == "second" and page.answers() == ["One."]


@needs_chromium
def test_html_stays_text_wherever_it_comes_from(monkeypatch, browser):
    bad = '<img src=x onerror="window.hit=1"><script>window.hit=1</script><b>x</b>'
    reply = f"\n{bad}\n```html\n{bad}\n```\nend"
    with opened(monkeypatch, browser, reply) as (page, _):
        page.settings(System_prompt=bad)
        page.send(bad)
        page.ended()
        page.page.reload()
        [answer] = page.answers()
        assert answer.count(bad) == 2 and page.questions() == [bad]
        assert page.page.locator("li.assistant pre").inner_text() == bad
        assert page.page.locator("main img, main b, #side img, ol script").count() == 0
        assert page.page.evaluate("window.hit") is None
        assert page.button(f"Delete: {bad}").count() == 1
        # Even a mistake in the page could not make HTML of it.
        refused = page.page.evaluate("""() => {
            try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; }
        }""")
        assert refused == "TypeError"


@needs_chromium
def test_a_phone_scrolls_down_only_and_reaches_everything(monkeypatch, browser):
    wide = "\n" + "x" * 300 + "\n```\n" + "y" * 300 + "\n```"
    with opened(monkeypatch, browser, wide, **PHONE) as (page, _):
        page.send("w" * 200)
        page.ended()
        widths = "['html', '#scroll'].map((name) => document.querySelector(name).scrollWidth)"
        assert max(page.page.evaluate(widths)) <= 390
        for button in page.page.locator("button:visible").all():
            box = button.bounding_box()
            assert min(box["width"], box["height"]) >= 36, button
        assert not page.button("New conversation").is_visible()
        page.button("Conversations").click()
        page.button("New conversation").click()
        assert not page.button("New conversation").is_visible() and page.answers() == []
        page.settings(Temperature="0.5")


@needs_chromium
def test_keyboard_alone_and_a_screen_reader_suffice(monkeypatch, browser):
    with opened(monkeypatch, browser, "\nYes. It does.") as (page, _):
        assert page.page.evaluate("document.activeElement.id") == "text"
        page.box.press("Shift+Enter")
        page.box.type("Does it?")
        assert page.box.input_value() == "\nDoes it?"
        page.box.press("Enter")
        page.ended()
        assert page.page.evaluate("document.activeElement.id") == "text"
        spoken = page.page.get_by_role("log").inner_text().split()
        assert " ".join(spoken) == "Yes. It does. End of the answer."
        assert page.page.get_by_role("heading", level=2).all_inner_texts()[:2] == [
            "You said",
            "The answer",
        ]
        nameless = [
            control
            for control in page.page.locator("button:visible, textarea:visible").all()
            if re.match('- (button|textbox)(?! ")', control.aria_snapshot())
        ]
        assert not nameless
        page.page.reload()
        page.page.keyboard.press("Tab")  # from the message field, the last stop, out of the page
        assert [focused_by_tab(page) for _ in range(3)] == [
            "Skip to the message field", "New conversation", "Does it?"
        ]  # fmt: skip


def focused_by_tab(page: ChatPage) -> str:
    page.page.keyboard.press("Tab")
    return page.page.evaluate(
        "document.activeElement.ariaLabel || document.activeElement.textContent.trim()"
    )


@needs_chromium
def test_errors_are_said_in_words(monkeypatch, browser):
    with opened(
        monkeypatch,
        browser,
        LONG,
        LONG,
        "\nYes.",
        pause=0.01,
        keys=["secret"],
        slots=1,
        most_waiting=0,
    ) as (page, _):
        page.page.get_by_text("The server asks for an API key.").wait_for()
        page.send("Hello?")
        page.page.get_by_role("alert").get_by_text("asks for an API key").wait_for()
        page.settings(API_key="wrong")
        page.page.get_by_text("does not know this API key").wait_for()
        page.settings(API_key="secret")
        page.page.get_by_role("heading", name="tiny-glm-4-9b").wait_for()
        page.button("Retry").click()
        page.written(20)
        other = page.context.new_page()
        other.goto(page.url)
        other.evaluate("() => { key = 'secret'; }")
        other.get_by_label("Message", exact=True).fill("And me?")
        other.keyboard.press("Enter")
        other.get_by_text("The server is busy: too many are waiting. Try again in").wait_for()
        other.close()
        page.context.set_offline(True)
        page.page.keyboard.press("Escape")
        page.ended()
        page.button("Retry").click()
        page.page.get_by_text("The server cannot be reached.").first.wait_for()
        page.context.set_offline(False)


@needs_chromium
def test_a_lost_connection_keeps_what_has_come(monkeypatch, browser):
    with opened(monkeypatch, browser, LONG, pause=0.01) as (page, engine):
        page.send("Tell me more.")
        page.written(40)
        engine.stop()
        page.page.get_by_text("The answer broke off: the server is shutting down").wait_for()
        assert len(page.answers()[-1]) > 40
