"""A simulator under trio's virtual clock, with the webhooks it sends."""

import pytest
import trio

from engine.domain.news import GatewayCall
from engine.gateways.simulator import Simulator
from engine.gateways.simulator_books import read_books
from engine.gateways.simulator_config import SimulatorConfig
from engine.gateways.simulator_totals import totals_by_charge, totals_by_operation

EPOCH_MS = 1_800_000_000_000


class VirtualClock:
    def now_ms(self):
        return EPOCH_MS + round(trio.current_time() * 1_000)


class Rig:
    """The simulator and everything a test asks of it; `accepts` answers its webhooks."""

    def __init__(self, path):
        self.path = path
        self.clock = VirtualClock()
        self.webhooks = []
        self.accepts = lambda event: True
        self.simulator = None
        self._calls = 0

    def start(self, **settings):
        self.simulator = Simulator(
            self.path,
            clock=self.clock,
            config=SimulatorConfig(**settings),
            deliver=self.deliver,
        )
        return self.simulator

    async def restart(self, **settings):
        await self.simulator.close()
        return self.start(**settings)

    async def deliver(self, headers, raw):
        event = self.simulator.verify_webhook(headers, raw, self.clock.now_ms())
        self.webhooks.append((trio.current_time(), event))
        return self.accepts(event)

    @property
    def events(self):
        return [event for _, event in self.webhooks]

    def call(self, action="authorize", method="pm_card_visa", amount=1_000, **changes):
        self._calls += 1
        n = self._calls
        values = {
            "gateway": "simulator",
            "op_id": f"pay_{n}.1",
            "key": f"op_{n}",
            "action": action,
            "amount": amount,
            "currency": "USD",
            "payment_method": method,
            "livemode": False,
        }
        return GatewayCall(**(values | changes))

    async def ask(self, call):
        """As the engine does: at once where that is possible, else bounded by the deadline."""
        (news,) = self.simulator.perform_now([call])
        if news is None:
            with trio.move_on_after(self.simulator.traits.deadline_ms / 1_000):
                return await self.simulator.perform(call)
        return news

    async def look_up(self, call):
        values = {name: getattr(call, name) for name in call.__struct_fields__}
        return await self.ask(GatewayCall(**(values | {"look_up": True})))

    def effects(self):
        return list(read_books(self.path))

    def totals(self):
        return totals_by_operation(self.effects(), self.clock.now_ms())

    def charges(self):
        return totals_by_charge(self.effects(), self.clock.now_ms())


@pytest.fixture
def rig(tmp_path):
    return Rig(tmp_path / "books" / "simulator.jsonl")
