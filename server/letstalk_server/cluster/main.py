"""`letstalk cluster`: writes the configuration of the proxy that places sessions on workers."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from letstalk_rt.errors import ConfigError
from letstalk_server.cluster.haproxy import DnsWorkers, Frontend, WorkerAddress, configuration
from letstalk_server.settings import AGENT_PORT

_EPILOG = """examples:
  letstalk cluster haproxy --worker w1=10.0.0.1:8080 --worker w2=10.0.0.2:8080 -o haproxy.cfg
  letstalk cluster haproxy --dns letstalk.default.svc.cluster.local:8080 --count 40
  haproxy -c -f haproxy.cfg"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the configuration; return the exit status.

    Raises:
        ConfigError: An option cannot be used.
    """
    options = _parser().parse_args(arguments)
    if bool(options.worker) == (options.dns is not None):
        raise ConfigError("name the workers by --worker or by --dns, not both")
    text = configuration(
        _dns_workers(options)
        if options.dns is not None
        else [WorkerAddress.parse(worker, options.agent_port) for worker in options.worker],
        Frontend(options.bind, options.tls_cert, options.stats, options.max_sockets_per_address),
    )
    if options.output is None:
        sys.stdout.write(text)
    else:
        options.output.write_text(text, encoding="utf-8")
    return 0


def _dns_workers(options: argparse.Namespace) -> DnsWorkers:
    service, _, port = options.dns.rpartition(":")
    if not service or not port.isdecimal():
        raise ConfigError(f"--dns is {options.dns!r}, expected SERVICE:PORT")
    return DnsWorkers(service, int(port), options.agent_port, options.count, options.nameserver)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letstalk cluster",
        description="Place sessions on many workers (letstalk serve --worker-name ...).",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("haproxy", help="write a configuration of HAProxy").add_argument
    add(
        "--worker",
        action="append",
        default=[],
        metavar="NAME=HOST:PORT[,agent=PORT][,weight=N]",
        help="a worker by its --worker-name; may be repeated; weight is its relative size",
    )
    add("--dns", metavar="SERVICE:PORT", help="instead: a domain that lists all workers")
    add("--count", type=int, default=20, metavar="N", help="most workers of --dns (%(default)s)")
    add(
        "--nameserver",
        metavar="HOST:PORT",
        help="DNS server for --dns (those of /etc/resolv.conf)",
    )
    add(
        "--agent-port",
        type=int,
        default=AGENT_PORT,
        metavar="PORT",
        help="--agent-port of the workers (%(default)s)",
    )
    add("--bind", default=":8080", metavar="HOST:PORT", help="where visitors come in (%(default)s)")
    add("--tls-cert", metavar="FILE", help="PEM file with certificate and key, for HTTPS")
    add("--stats", metavar="HOST:PORT", help="where the proxy shows its statistics and /metrics")
    add(
        "--max-sockets-per-address",
        type=int,
        default=Frontend().max_sockets_per_address,
        metavar="N",
        help="connections of one address that is not private; 0 is no limit (%(default)s)",
    )
    add("-o", "--output", type=Path, metavar="FILE", help="write here (standard output)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
