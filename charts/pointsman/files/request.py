"""Ask a gateway for its models and, with --model, for an answer; exit 1 says what failed."""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from typing import Any


def ask(url: str, body: Any, seconds: float) -> Any:
    """The JSON that comes back; the gateway's own words where it refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")[:2000]
        sys.exit(f"{url} answered {error.code}: {text}")


def ask_until_reached(url: str, until: float) -> Any:
    """The same for a Service whose pods may still be starting."""
    while True:
        try:
            return ask(url, None, 10)
        except OSError as error:
            if time.monotonic() > until:
                sys.exit(f"{url} was not reached: {error}. Do the gateway's pods run?")
            time.sleep(1)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gateway")
    parser.add_argument("--model", default="")
    parser.add_argument("--timeout-seconds", type=float, default=120)
    options = parser.parse_args()
    until = time.monotonic() + options.timeout_seconds
    models = ask_until_reached(f"{options.gateway}/v1/models", until)
    if models.get("object") != "list":
        sys.exit(f"{options.gateway}/v1/models answered what is no list of models: {models}")
    names = sorted(model["id"] for model in models["data"])
    print("models:", ", ".join(names) or "none yet")
    if not options.model:
        return
    body = {
        "model": options.model,
        "messages": [{"role": "user", "content": "Say yes."}],
        "max_tokens": 8,
    }
    left = max(1.0, until - time.monotonic())
    reply = ask(f"{options.gateway}/v1/chat/completions", body, left)
    print(f"{options.model}:", reply["choices"][0]["message"]["content"])


main()
