"""Make a Ray cluster of the nodes of a host file by ssh, end it, or print the commands for doing it by hand.

`up` starts Ray on each node, the first line's being the head; `down` ends what `up` started and nothing else.
"""

import argparse
import shlex
from pathlib import Path

PORT = 6379


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: rlcore cluster up --hostfile hosts --print"
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("--hostfile", type=Path, required=True, metavar="FILE", help="one address a line")
    parser.add_argument("--port", type=int, default=PORT, help="of the head (default: %(default)s)")
    parser.add_argument("--print", action="store_true", help="print the commands of each node, run nothing")


def run(args: argparse.Namespace) -> int:
    from rlcore.cluster.bring_up import Cluster
    from rlcore.cluster.hostfile import read_hostfile

    cluster = Cluster(args.hostfile, tuple(read_hostfile(args.hostfile)), args.port)
    if args.print:
        for host in cluster.hosts:
            command = cluster.ray_start(host) if args.action == "up" else ["ray", "stop"]
            print(f"# on {host.address}\n{shlex.join(command)}")
    elif args.action == "up":
        cluster.up()
        print(f"a Ray cluster of {len(cluster.hosts)} nodes runs at {cluster.address}; a run joins it by")
        print(f"  --set cluster.address={cluster.address} --set cluster.hostfile={args.hostfile}")
        print(f"and this ends it:\n  rlcore cluster down --hostfile {args.hostfile}")
    else:
        cluster.down()
        print(f"ended what was started on {len(cluster.hosts)} nodes")
    return 0
