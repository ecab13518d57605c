"""`mmspeech serve` and `mmspeech demo`: the server, safe by default."""

import ipaddress
import logging
import secrets
import ssl
import webbrowser
from pathlib import Path

from rich.console import Console

from mmspeech.config import ConfigError
from mmspeech.serve.settings import ServeConfig

OWN_CERTIFICATE = Path.home() / ".cache" / "mmspeech" / "tls"


def run_server(
    model: str | None,
    config: ServeConfig,
    *,
    host: str,
    port: int,
    device: str,
    quantize: str | None,
    processes: int,
    cuda_graphs: bool,
    tls: bool | None,
    certificate: Path | None,
    key: Path | None,
    open_page: bool,
) -> None:
    """Serve until SIGINT or SIGTERM; who is on then hears why the call ends.

    `processes` > 1: so many hold the model, and share the places. `cuda_graphs`: see mmspeech.nn.cuda_graph. Beyond
    this machine there is always a token, and TLS unless `tls` is false (behind a proxy that has it).
    """
    from aiohttp import web

    from mmspeech.checkpoint import load_model
    from mmspeech.commands.common import check_device, recorder
    from mmspeech.serve.crew import Crew
    from mmspeech.serve.server import Desk, build_app
    from mmspeech.serve.worker import Worker

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    exposed = not is_loopback(host)
    if exposed and config.token is None:
        config = config.model_copy(update={"token": secrets.token_urlsafe(16)})
    context = tls_context(tls if tls is not None else exposed or certificate is not None, certificate, key, host=host)
    console = Console(stderr=True)
    with console.status("loading the model"):
        record = recorder(cuda_graphs, check_device(device))
        if processes > 1:
            if quantize is not None:
                raise ConfigError("--quantize with --processes: store it so with `mmspeech quantize`, and serve that")
            if record is not None:
                raise ConfigError("--cuda-graphs with --processes: a device is one process's; leave one of them out")
            worker = Crew(model, places=config.places, processes=processes, device=device, manner=config)
        else:
            bundle = load_model(model, device=device, quantize=quantize)
            worker = Worker(bundle, places=config.places, manner=config, record=record)
    desk = Desk(worker, config)
    address = page_address(host, port, context is not None, config.token)
    console.print(f"{worker.model.name}: {config.places} calls at once. Open {address}", highlight=False)
    if exposed and context is None:
        console.print("no TLS: browsers give no microphone to pages that come without it", style="yellow")
    app = build_app(desk)
    if open_page:
        app.on_startup.append(_opener(address))
    try:
        web.run_app(app, host=host, port=port, ssl_context=context, print=None, shutdown_timeout=5.0)
    except OSError as error:
        raise ConfigError(f"{host}:{port}: {error.strerror or error}; choose another --port or --host") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(wanted: bool, certificate: Path | None, key: Path | None, *, host: str) -> ssl.SSLContext | None:
    """A given certificate, or one of our own. ConfigError for files that do not fit."""
    if not wanted:
        return None
    if (certificate is None) != (key is None):
        raise ConfigError("give --certificate and --key together, or neither: then one is made")
    if certificate is None:
        from mmspeech.serve.tls import own_context

        return own_context(OWN_CERTIFICATE, host)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{certificate}, {key}: no certificate with its key ({error})") from error
    return context


def page_address(host: str, port: int, secure: bool, token: str | None) -> str:
    """Where the page is."""
    name = "localhost" if is_loopback(host) or host in ("0.0.0.0", "::") else host
    return f"{'https' if secure else 'http'}://{name}:{port}/" + (f"?token={token}" if token else "")


def _opener(address: str):
    async def open_page(app) -> None:
        webbrowser.open(address)

    return open_page
