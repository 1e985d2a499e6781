"""A JupyterLab of the tests' own, and the machine's browser to look at it with."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSER = next(filter(None, map(shutil.which, (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")
PATIENCE = 120_000  # ms: a busy machine's kernel needs seconds to import pandas


@contextmanager
def jupyterlab(command, folder, **options):
    """Start JupyterLab on a free port, with settings and folders of its own.

    Parameters
    ----------
    command : list of str
        What starts it; options for the port, the token and the root user are added.
    folder : pathlib.Path
        Where its settings and its log go.
    **options
        Further arguments of subprocess.Popen.

    Yields
    ------
    tuple of str
        Its address and its token.
    """
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)  # no question about news in front of the page, no look-up of any
    (settings / "notification.jupyterlab-settings").write_text(
        '{"fetchNews": "false", "checkForUpdates": false}')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "IPYTHONDIR": "ipython",
           "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTERLAB_SETTINGS_DIR": "settings",
           "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = {**os.environ, **{name: str(folder / part) for name, part in own.items()},
                   **options.pop("env", {})}
    command = [*command, "--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += ["--allow-root"] * (hasattr(os, "geteuid") and os.geteuid() == 0)
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, **options)
    try:
        for _ in range(120):
            assert server.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail("JupyterLab did not answer in a minute:\n" + (folder / "log").read_text())
        yield address, token
    finally:
        server.terminate()  # it ends its kernels, too
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@contextmanager
def browser():
    """Yield the machine's Chromium or Chrome, driven by Playwright."""
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=[
            "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield chromium
        chromium.close()


def run_all(page):
    """Run all cells of the notebook that a page shows, by the menu."""
    page.get_by_text("| Idle").first.wait_for()  # what runs before that may be lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name=re.compile("^Run All Cells")).first.click()


def choose_theme(page, name):
    """Choose JupyterLab's theme "Light" or "Dark", by the menu."""
    page.get_by_role("menuitem", name="Settings", exact=True).click()
    page.get_by_text("Theme", exact=True).first.hover()
    page.get_by_text(f"JupyterLab {name}", exact=True).first.click()
    page.locator(f"body[data-jp-theme-name='JupyterLab {name}']").wait_for(state="attached")
