"""Whose turn it is: groups that wait, by tenant and, within a tenant, by task.

Next comes the tenant that has been given least work, and of that tenant the task that has been given least. What is
served out of turn (a row that happens to fit into a batch) is charged all the same, so it is paid back later: deficit
round robin in the form of virtual token counters (Shreedhar and Varghese 1995; Sheng et al. 2024, "Fairness in Serving
Large Language Models"). One that comes back from idling starts level with the others: idling earns no credit.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

from app.engine.groups import Group, Sequence

_REMEMBERED = 4096  # idle tasks and tenants whose counters are kept


class _Party:
    """A tenant or a task. `served` is the work it has been given; `ticket` its valid entry in the order of turns."""

    def __init__(self) -> None:
        self.served = 0.0
        self.ticket = -1

    @property
    def active(self) -> bool:
        return self.ticket >= 0


P = TypeVar("P", bound=_Party)


class _Turns(Generic[P]):
    """Parties with something waiting, least served first. Changing a counter leaves a stale entry behind, which is
    skipped when it comes up."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, P]] = []
        self._tickets = itertools.count()
        self._level = 0.0  # where one that comes in starts at least

    def enter(self, party: P) -> None:
        first = self.first()
        self._level = max(self._level, first.served if first else 0.0)
        party.served = max(party.served, self._level)
        self._push(party)

    def charge(self, party: P, cost: int) -> None:
        party.served += cost
        self._push(party)

    def leave(self, party: P) -> None:
        party.ticket = -1
        self._level = max(self._level, party.served) if self.first() is None else self._level

    def first(self) -> P | None:
        while self._heap and self._heap[0][1] != self._heap[0][2].ticket:
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def in_order(self) -> list[P]:
        return [party for _, ticket, party in sorted(self._heap, key=lambda e: e[:2]) if ticket == party.ticket]

    def forgettable(self, party: P) -> bool:
        """Whether an idle party would start at the common level anyway."""
        return not party.active and party.served <= self._level

    def _push(self, party: P) -> None:
        party.ticket = next(self._tickets)
        heapq.heappush(self._heap, (party.served, party.ticket, party))


class _Task(_Party):
    def __init__(self) -> None:
        super().__init__()
        self.groups: OrderedDict[Group, None] = OrderedDict()


class _Tenant(_Party):
    def __init__(self) -> None:
        super().__init__()
        self.tasks: dict[str, _Task] = {}
        self.turns: _Turns[_Task] = _Turns()


class FairQueue:
    """Waiting groups. `rows` and `tokens` are what waits now: rows, and their cost in tokens."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._turns: _Turns[_Tenant] = _Turns()
        self.rows = self.tokens = 0

    def __bool__(self) -> bool:
        return self.rows > 0

    def __iter__(self) -> Iterator[Group]:
        for tenant in self._tenants.values():
            for task in tenant.tasks.values():
                yield from task.groups

    def add(self, group: Group) -> None:
        tenant, task = self._parties(group)
        task.groups[group] = None
        if not task.active:
            tenant.turns.enter(task)
        if not tenant.active:
            self._turns.enter(tenant)
        self.rows, self.tokens = self.rows + len(group.waiting), self.tokens + _cost(group)

    def first(self) -> Group | None:
        """The group whose turn it is."""
        tenant = self._turns.first()
        task = tenant.turns.first() if tenant else None
        return next(iter(task.groups)) if task else None

    def front(self, count: int) -> list[Group]:
        """Up to `count` groups near the front: the first of every task, then the second of every task, and so on, the
        least served tasks first."""
        lines = [iter(task.groups) for tenant in self._turns.in_order() for task in tenant.turns.in_order()]
        return list(itertools.islice(_interleave(lines), count))

    def take(self, group: Group, count: int) -> list[Sequence]:
        """The group's next `count` rows, charged to its tenant and task."""
        tenant, task = self._parties(group)
        taken = [group.waiting.popleft() for _ in range(count)]
        cost = sum(sequence.row.cost for sequence in taken)
        self.rows, self.tokens = self.rows - count, self.tokens - cost
        cost -= group.request.shared * (count - 1)
        tenant.turns.charge(task, cost)
        self._turns.charge(tenant, cost)
        if not group.waiting:
            self._drop(group, tenant, task)
        return taken

    def remove(self, group: Group) -> None:
        """Forget what still waits of a group; nothing is charged."""
        tenant, task = self._parties(group)
        if group in task.groups:
            self.rows, self.tokens = self.rows - len(group.waiting), self.tokens - _cost(group)
            group.waiting.clear()
            self._drop(group, tenant, task)

    def clear(self) -> None:
        for group in list(self):
            self.remove(group)

    def check_integrity(self) -> None:
        groups = list(self)
        assert all(group.waiting for group in groups)
        assert self.rows == sum(len(group.waiting) for group in groups)
        assert self.tokens == sum(_cost(group) for group in groups)
        for tenant in self._tenants.values():
            assert tenant.active == any(task.active for task in tenant.tasks.values())
            assert all(task.active == bool(task.groups) for task in tenant.tasks.values())

    def _parties(self, group: Group) -> tuple[_Tenant, _Task]:
        tenant_name, task_name = group.request.flow
        tenant = self._tenants.setdefault(tenant_name, _Tenant())
        return tenant, tenant.tasks.setdefault(task_name, _Task())

    def _drop(self, group: Group, tenant: _Tenant, task: _Task) -> None:
        del task.groups[group]
        if not task.groups:
            tenant.turns.leave(task)
            _forget(tenant.tasks, tenant.turns)
        if tenant.turns.first() is None:
            self._turns.leave(tenant)
            _forget(self._tenants, self._turns)


def _cost(group: Group) -> int:
    return sum(sequence.row.cost for sequence in group.waiting)


def _interleave(lines: list[Iterator[Group]]) -> Iterator[Group]:
    while lines:
        going = []
        for line in lines:
            group = next(line, None)
            if group is not None:
                yield group
                going.append(line)
        lines = going


def _forget(parties: dict[str, P], turns: _Turns[P]) -> None:
    """Drop idle parties that would start level with the others anyway, once there are many."""
    if len(parties) > _REMEMBERED:
        for name in [name for name, party in parties.items() if turns.forgettable(party)]:
            del parties[name]
