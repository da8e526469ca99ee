"""A stand-in for Ray in one process: actors whose tasks are done when they are waited for, and that die when told."""

import itertools
from types import SimpleNamespace


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(repr(cause))
        self.cause = cause


class FakeRay:
    """What `bgekit.distributed.cluster` uses of the module `ray`.

    `nodes_there` are names of nodes, `stopped` those that went because they were told to. `hurt(actor, method,
    argument)` is called before each call of a method; it raises `RayError` to let the actor die.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, nodes_there, hurt=lambda *_: None, cores=1.0):
        self.nodes_there, self.hurt, self.cores = list(nodes_there), hurt, cores
        self.killed, self.stopped, self._numbers = [], [], itertools.count()

    def nodes(self):
        return [
            {
                "NodeID": name, "NodeManagerAddress": name, "Resources": {"CPU": self.cores},
                "Alive": name in self.nodes_there, "DeathReason": int(name in self.stopped),
            }
            for name in (*self.nodes_there, *self.stopped)
        ]  # fmt: skip

    def available_resources(self):
        return {}

    def put(self, value):
        return value

    def remote(self, kind):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda: FakeActor(self, kind, options)))

    def kill(self, actor, *, no_restart):
        actor.dead = True
        self.killed.append(actor)

    def wait(self, refs, *, num_returns, timeout):
        ready = [ref for ref in refs if not ref.actor.stuck]
        return ready[:num_returns] if num_returns > 1 else ready[:1], []

    def get(self, ref):
        actor = ref.actor
        if actor.dead:
            raise RayError("The actor died")
        try:
            self.hurt(actor, ref.method, ref.argument)
        except RayError:
            actor.dead = True
            raise
        try:
            return getattr(actor.object, ref.method)(*ref.argument)
        except RayError:
            raise
        except Exception as error:
            raise RayTaskError(error) from error


class FakeActor:
    def __init__(self, ray, kind, options):
        self.ray, self.object, self.options = ray, kind(), options
        self.number, self.dead, self.stuck = next(ray._numbers), False, False
        for method in ("hello", "begin", "work", "tokenizer"):
            call = lambda *argument, method=method: FakeRef(self, method, argument)  # noqa: E731
            setattr(self, method, SimpleNamespace(remote=call))


class FakeRef:
    def __init__(self, actor, method, argument):
        self.actor, self.method, self.argument = actor, method, argument
