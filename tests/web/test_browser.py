"""The page in a real browser: what people see, by mouse and by keyboard.

Pictures are kept in the directory that CLUSTERPORTS_SCREENSHOTS names.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import missing
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from web.conftest import PATIENCE, TOKEN

from clusterports import PortAllocator
from clusterports_redis._wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import servers
    from cli.conftest import Command
    from selenium.webdriver.remote.webelement import WebElement
    from web.conftest import Serve

    Open = Callable[..., "Browser"]

DASH = "\u2013"
HOSTILE = "<img src=x onerror=alert(1)>"
BIDI = "a\u202eexe.gnp\x1b[2J"


class Browser:
    """A Chromium without a window."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver = driver
        self._folder = folder

    def go(self, url: str) -> None:
        self.driver.get(url)

    def wait(self, look: Callable[[], Any]) -> Any:
        """What is seen, as soon as it is true."""
        return WebDriverWait(self.driver, PATIENCE, 0.05).until(lambda _: look())

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def one(self, selector: str) -> WebElement:
        """As soon as there is one."""
        self.wait(lambda: self.all(selector))
        return self.all(selector)[0]

    def click(self, selector: str) -> None:
        """As soon as it is there; what is drawn anew at this moment is there again."""

        def clicked() -> bool:
            self.all(selector)[0].click()
            return True

        WebDriverWait(self.driver, PATIENCE, 0.05, (StaleElementReferenceException, IndexError)).until(
            lambda _: clicked()
        )

    def texts(self, selector: str) -> list[str]:
        """Of all that are there, taken at one moment."""
        code = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)"
        found: list[str] = self.driver.execute_script(code, selector)
        return found

    def run(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def keys(self, *keys: str) -> None:
        """To whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        return str(self.run("return document.activeElement.innerText"))

    def dark(self, wanted: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if wanted else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def picture(self, name: str) -> None:
        folder = Path(os.environ.get("CLUSTERPORTS_SCREENSHOTS", self._folder))
        assert self.driver.save_screenshot(str(folder / f"{name}.png"))

    def complaints(self) -> list[str]:
        """Of the console, where violations of the policy are told too."""
        return [one["message"] for one in self.driver.get_log("browser")]


@contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        missing("no chromium with chromedriver in PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in ("--headless=new", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1280,900"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(programs[1]))
    try:
        yield Browser(driver, folder)
    finally:
        driver.quit()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path) as made:
        yield made


def ports(store: servers.Store, host: str) -> PortAllocator:
    return PortAllocator(store.url, host=host, instance=f"manager@{host}", probe=False)


HOSTS = "#map tbody tr:not([hidden]) th"


def cell(host: str) -> str:
    """What the map says of the range backup on a host, which is first."""
    return f"#map tbody tr:has(a[href='#host={host}']) td:nth-of-type(1)"


def test_story(browser: Browser, command: Command, serve: Serve, valkey: servers.ServerStore) -> None:
    """Map, host, port, search, and back, by mouse and by keyboard; what is taken meanwhile shows by itself."""
    process, url = serve(command)
    with ports(valkey, "kvm-07") as first, ports(valkey, "kvm-08") as second:
        first.acquire("backup", count=3, owner="vm-1")
        hostile = first.acquire("migration", owner=HOSTILE, labels={"<b>": BIDI})
        second.acquire("backup", owner="vm-2", labels={"job": "nightly"})
        browser.go(url)
        browser.wait(lambda: browser.texts(HOSTS) == ["kvm-07", "kvm-08"])
        before = browser.texts(cell("kvm-08"))
        taken = second.acquire("backup", owner="vm-3")
        browser.wait(lambda: browser.texts(cell("kvm-08")) == ["2/64"])
        assert ["1/64"] == before

        browser.click("a[href='#host=kvm-07']")
        browser.wait(lambda: "10811/tcp" in browser.texts("#host-view tbody th a"))
        assert "kvm-07 · clusterports" == browser.driver.title
        assert "kvm-07" == browser.focused()
        assert 4 == len(browser.all("#host-view .grid li.held"))
        row = f"#host-view tr:has(a[href*='port={hostile.number}'])"
        assert HOSTILE == browser.texts(f"{row} td:nth-of-type(2)")[0]
        assert "<b>=a\\u202eexe.gnp\\x1b[2J" == browser.texts(f"{row} .label")[0]
        assert ([], None) == (browser.all("img, bdi b"), browser.run("return window.alerted ?? null"))
        assert "acquired" in browser.texts("#host-view table:last-of-type td b")

        browser.click(f"{row} th a")
        browser.wait(lambda: browser.texts("caption")[-1].startswith(f"Events of {hostile.number}/tcp"))
        fresh = first.acquire("backup", owner="vm-4")
        browser.wait(lambda: f"{fresh.number}/tcp" in browser.texts("#host-view tbody th a"))
        browser.driver.back()
        browser.driver.back()
        browser.wait(lambda: browser.focused() == "kvm-07")

        browser.keys(Keys.ARROW_DOWN)
        assert "kvm-08" == browser.focused()
        browser.keys(Keys.HOME)
        assert "kvm-07" == browser.focused()
        browser.keys(Keys.END)
        browser.keys(Keys.ENTER)
        browser.wait(lambda: browser.texts("#host-title") == ["kvm-08"])

        browser.keys("/")
        browser.keys("VM-3")
        browser.wait(lambda: browser.texts("#hits li") == [f"kvm-08 {taken.number}/tcp held, vm-3"])
        browser.keys(Keys.ARROW_DOWN)
        browser.keys(Keys.ENTER)
        browser.wait(lambda: browser.texts("#host-view tr.chosen td:nth-of-type(2)") == ["vm-3"])
        browser.click("#host-view a[href='#']")

        filter_ = browser.one("#filter")
        filter_.send_keys("08")
        browser.wait(lambda: browser.texts(HOSTS) == ["kvm-08"])
        assert "1 of 2 hosts" == browser.texts("#count")[0]
        filter_.send_keys(Keys.BACKSPACE, Keys.BACKSPACE)
        browser.run(
            "const one = document.getElementById('sort'); one.value = 'full'; one.dispatchEvent(new Event('change'))"
        )
        assert ["kvm-07", "kvm-08"] == browser.texts(HOSTS)
        second.acquire("backup", count=10)
        browser.wait(lambda: browser.texts(HOSTS) == ["kvm-08", "kvm-07"])
        taken.release()
        browser.wait(lambda: browser.texts(cell("kvm-08")) == ["11/64"])
    assert [] == browser.complaints()
    process.send_signal(signal.SIGTERM)
    assert (0, "") == (process.wait(PATIENCE), process.stderr and process.stderr.read())
    browser.wait(lambda: browser.texts("#state-text") == ["No connection"])
    assert browser.texts("#banner")[0].startswith("The server of this page does not answer")


def test_token(browser: Browser, command: Command, serve: Serve, valkey: servers.ServerStore) -> None:
    """Another token is refused in words, the token opens the page, and logging out closes it."""
    _, url = serve(command, CLUSTERPORTS_WEB_TOKEN=TOKEN)
    with ports(valkey, "kvm-07") as taker:
        taker.acquire("backup")
        browser.go(url)
        assert "token" == browser.run("return document.activeElement.id")
        browser.keys("another-token-altogether", Keys.ENTER)
        browser.wait(lambda: browser.texts(".wrong") == ["That is not the token."])
        browser.picture("login")
        browser.one("#token").send_keys(TOKEN, Keys.ENTER)
        browser.wait(lambda: browser.texts(HOSTS) == ["kvm-07"])
        assert TOKEN not in browser.driver.current_url
        assert "" == browser.run("return document.cookie")
        browser.click("form[action='/logout'] button")
        assert browser.one("#token").is_displayed()
    refused = [one for one in browser.complaints() if "401 (Unauthorized)" not in one and "[DOM]" not in one]
    assert [] == refused


def test_looks(browser: Browser, command: Command, serve: Serve, valkey: servers.ServerStore) -> None:
    """In light and dark, and on a screen 360 px wide, all is there and the page itself scrolls in one direction."""
    _, url = serve(command)
    with ports(valkey, "kvm-07") as taker, ports(valkey, "x" * 200) as other:
        taker.acquire("backup", count=64, owner="y" * 300)
        other.acquire("display", owner=HOSTILE)
        grounds = []
        for dark in (False, True):
            browser.dark(dark)
            for width, height in ((1280, 900), (360, 740)):
                browser.resize(width, height)
                for view in ("", "#host=kvm-07"):
                    browser.go("about:blank")
                    browser.go(f"{url}/{view}")
                    browser.one("#host-view .grid" if view else "#map td.full")
                    name = f"{'host' if view else 'map'}-{'dark' if dark else 'light'}-{width}"
                    browser.picture(name)
                    inner, outer = browser.run(
                        "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
                    )
                    assert (name, inner) == (name, outer)
            grounds.append(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert 2 == len(set(grounds))
    assert [] == browser.complaints()


def test_store_away(browser: Browser, bare: Command, serve: Serve, tmp_path: Path) -> None:
    """When the store goes away the page says so and keeps what it knew; when it is back, it is live again."""
    store = tmp_path / "ports.db"
    url_of_store = f"sqlite:///{store}"
    assert 0 == bare("acquire", "--url", url_of_store, "--host", "kvm-07", "--ttl", "600").returncode
    _, url = serve(bare, "--url", url_of_store, "--every", "1")
    browser.go(url)
    browser.wait(lambda: browser.texts(HOSTS) == ["kvm-07"])
    away = tmp_path / "away.db"
    for name in ("", "-wal", "-shm"):
        if (part := Path(f"{store}{name}")).exists():
            part.rename(f"{away}{name}")
    store.mkdir()
    browser.wait(lambda: browser.texts("#state-text")[0].startswith("Store away since "))
    assert browser.texts("#banner")[0].startswith("The store cannot be read since ")
    assert ["kvm-07"] == browser.texts(HOSTS)
    browser.picture("away")
    store.rmdir()
    for name in ("", "-wal", "-shm"):
        if (part := Path(f"{away}{name}")).exists():
            part.rename(f"{store}{name}")
    browser.wait(lambda: browser.texts("#state-text")[0].startswith("Live"))
    assert [] == browser.complaints()


def test_damaged(browser: Browser, command: Command, serve: Serve, valkey: servers.ServerStore) -> None:
    """What cannot be read is not shown as free, neither of a host nor of the whole cluster."""
    wide = {"CLUSTERPORTS_RANGES__BACKUP__SCOPE": "cluster"}
    for host in ("kvm-07", "kvm-08"):
        for name, environment in (("migration", {}), ("backup", wide)):
            assert 0 == command("acquire", "--range", name, "--host", host, "--ttl", "600", **environment).returncode
    valkey.client.delete(keys("host:kvm-07")[0], keys("cluster")[0])
    _, url = serve(command, "--every", "1", **wide)
    browser.go(url)
    browser.wait(lambda: browser.texts(HOSTS) == ["kvm-07", "kvm-08"])
    rows = [browser.texts(f"#map tbody tr:nth-of-type({i}) td") for i in (1, 2)]
    card = browser.texts(".card.wide")[0]

    assert {DASH, "unreadable"} == set(rows[0])
    assert DASH not in rows[1]
    assert (True, False) == ("unreadable" in card, "taken" in card)
    told = browser.texts("#state-text")[0]
    assert told.endswith("ago; 1 host cannot be read; the whole cluster's ports cannot be read")
    assert [] == browser.complaints()


def test_silence(browser: Browser, command: Command, serve: Serve, valkey: servers.ServerStore) -> None:
    """A server that stands still is noticed, and that it goes on; a clock that differs from its clock does no harm."""
    ahead = "const now = Date.now; Date.now = () => now() + 3600e3;"
    browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": ahead})
    process, url = serve(command)

    def is_live() -> bool:
        return re.fullmatch(r"Live, all read \d+ s ago", browser.texts("#state-text")[0]) is not None

    with ports(valkey, "kvm-07") as taker:
        browser.go(url)
        browser.wait(is_live)
        taker.acquire("backup")
        browser.wait(lambda: browser.texts(cell("kvm-07")) == ["1/64"])
        assert is_live()
        process.send_signal(signal.SIGSTOP)
        browser.run("const now = performance.now(); performance.now = () => now + 46e3")
        browser.wait(lambda: browser.texts("#state-text") == ["No connection"])
        taker.acquire("backup")
        process.send_signal(signal.SIGCONT)
        browser.wait(lambda: browser.texts(cell("kvm-07")) == ["2/64"])
        browser.wait(is_live)
    assert [] == browser.complaints()
