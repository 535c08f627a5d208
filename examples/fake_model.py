"""A server that imitates a language model, with a delay and a count of its calls; and a client for it.

python examples/fake_model.py 9000
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from urllib.parse import urlsplit

__all__ = ["FakeModel", "post"]


class FakeModel:
    """Use with `async with`. A call ends at once when its client disconnects.

    Args:
        seconds: the duration of a call.
        port: 0 picks a free port.

    Attributes:
        active: the number of current calls.
        most: the maximum of `active` so far.
        seen: the `X-Request-Id` of all calls, in order.
        url: the server's address, after entering.
    """

    def __init__(self, seconds: float = 1.0, port: int = 0) -> None:
        self.seconds = seconds
        self.active = self.most = 0
        self.seen: list[str] = []
        self.url = ""
        self._port = port

    async def __aenter__(self) -> FakeModel:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, EOFError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            if await self._answered(headers.get("x-request-id", ""), reader):
                answer = json.dumps({"answer": f"You sent {len(body)} bytes."}).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
        writer.close()

    async def _answered(self, request_id: str, reader: asyncio.StreamReader) -> bool:
        """Wait for the duration of a call. Returns False if the client disconnects meanwhile."""
        self.seen.append(request_id)
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await asyncio.wait_for(reader.read(1), self.seconds)
        except asyncio.TimeoutError:
            return True
        finally:
            self.active -= 1
        return False


async def post(url: str, body: bytes, request_id: str = "") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body. In your application this is httpx, or the vendor's client.

    Raises:
        OSError, EOFError: no connection, no HTTP, or the answer is not whole.
    """
    site = urlsplit(url)
    if site.scheme != "http":
        raise OSError(f"only http is spoken here, not {url}")
    reader, writer = await asyncio.open_connection(site.hostname, site.port or 80)
    try:
        lines = [f"POST {site.path or '/'} HTTP/1.0", f"Host: {site.netloc}"]  # 1.0 knows no chunks
        lines += [f"Content-Length: {len(body)}", f"X-Request-Id: {request_id}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in rest if line)
        headers = {name.lower(): value.strip() for name, _, value in fields}
        length = headers.get("content-length")
        answer = await (reader.read() if length is None else reader.readexactly(int(length)))
        return int(first.split()[1]), headers, answer
    except (ValueError, IndexError, asyncio.LimitOverrunError) as error:
        raise OSError(f"not an answer in HTTP: {error}") from None
    finally:
        # At once: whoever gives a slot back after this wants the model to have stopped by then.
        writer.transport.abort()


async def main(port: int) -> None:
    async with FakeModel(port=port) as model:
        print(f"a fake model answers at {model.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main(int(sys.argv[1]) if sys.argv[1:] else 0))
