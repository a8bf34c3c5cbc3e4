"""How each kind of fault is done: a strike at once, within the event that it waited for, and what lasts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from tests.faults.proxy import Carrier, Gate, Weather
from tests.faults.schedule import Planned
from tests.faults.servers import stand_still

if TYPE_CHECKING:
    from tests.faults.daemons import Place
    from tests.faults.world import World

FLAPS = 10
STEP = 0.1
SLOW, SLOWER = 0.2, 0.02  # seconds for each chunk
RATE = 20_000.0  # bytes a second
SHARE_OF_RESETS = 0.5  # of the connections that stood still: cut off in the end
SHARE_OF_BOTH_WAYS = 0.5
FEW = 3


def nothing(_: World, __: Planned, ___: Carrier | None) -> bool:
    return True


async def over(_: World, __: Planned) -> None:
    """It is over as soon as it was done."""


@dataclass(frozen=True, slots=True)
class Action:
    """A kind of fault."""

    strike: Callable[[World, Planned, Carrier | None], bool] = nothing  # whether the frame is carried on
    last: Callable[[World, Planned], Awaitable[None]] = over  # returns when all is mended


# --- processes --------------------------------------------------------------------------


def kill_worker(world: World, fault: Planned, _: Carrier | None) -> bool:
    world.places[fault.place].kill(pause=fault.duration)
    return True


async def until_replaced(world: World, fault: Planned) -> None:
    """A supervisor starts it again: the fault is over when that has begun."""
    await asyncio.sleep(fault.duration + STEP)


async def stop_worker(world: World, fault: Planned) -> None:
    place: Place = world.places[fault.place]
    pid = place.pid
    await stand_still([pid] if pid else [], fault.duration)


def end_worker(world: World, fault: Planned, _: Carrier | None) -> bool:
    world.places[fault.place].signal(signal.SIGTERM)
    return True


def kill_children(world: World, fault: Planned, _: Carrier | None) -> bool:
    world.places[fault.place].kill_children()
    return True


async def deploy(world: World, _: Planned) -> None:
    for place in world.places[: world.mortal]:
        await place.replace()


# --- RabbitMQ ---------------------------------------------------------------------------


async def kill_broker(world: World, fault: Planned) -> None:
    await world.servers.kill_rabbitmq(fault.duration)


async def restart_broker(world: World, fault: Planned) -> None:
    await world.servers.restart_rabbitmq(fault.duration)


async def stop_broker(world: World, fault: Planned) -> None:
    await world.servers.stop_rabbitmq(fault.duration)


async def close_some(world: World, _: Planned) -> None:
    await world.servers.close_connections(most=FEW)


async def close_all(world: World, _: Planned) -> None:
    await world.servers.close_all_connections()


async def alarm(world: World, fault: Planned) -> None:
    await world.servers.alarm(fault.duration)


async def delete_queue(world: World, fault: Planned) -> None:
    await world.delete_side_queue(pause=fault.duration)


# --- networks ---------------------------------------------------------------------------


def gate_of(world: World, fault: Planned) -> Gate:
    match fault.target:
        case "publisher":
            return world.publishers_gate
        case "postgres_wire":
            return world.places[fault.place].postgres
        case _:
            return world.places[fault.place].amqp


def reset(world: World, fault: Planned, carrier: Carrier | None) -> bool:
    """Cut off the connection where it was seen, or all."""
    gate = gate_of(world, fault)
    if carrier is not None and carrier.gate is gate:
        carrier.reset()
        return False
    gate.reset()
    return True


def lose_answers(world: World, fault: Planned, carrier: Carrier | None) -> bool:
    """From now on nothing comes back."""
    gate = gate_of(world, fault)
    of = [carrier] if carrier is not None and carrier.gate is gate else list(gate.carriers.values())
    for each in of:
        each.weather.change(holds_down=True)
    return True


async def then_reset(world: World, fault: Planned) -> None:
    """In the end, what still stands is cut off."""
    await asyncio.sleep(fault.duration)
    for carrier in list(gate_of(world, fault).carriers.values()):
        if carrier.weather.holds_down:
            carrier.reset()


async def black_hole(world: World, fault: Planned) -> None:
    """Nothing passes: new connections get no answer either."""
    gate = gate_of(world, fault)
    gate.weather.change(holds_up=True, holds_down=True)
    await asyncio.sleep(fault.duration)
    if fault.draw < SHARE_OF_RESETS:
        gate.reset()
    gate.weather.clear()


async def slices(world: World, fault: Planned) -> None:
    await weathered(gate_of(world, fault).weather, fault.duration, slices=True)


async def slow(world: World, fault: Planned) -> None:
    how: dict[str, float] = (
        {"latency": SLOW} if fault.draw < SHARE_OF_RESETS else {"rate": RATE, "latency": SLOWER}
    )
    await weathered(gate_of(world, fault).weather, fault.duration, **how)


async def weathered(weather: Weather, seconds: float, **how: float | bool) -> None:
    weather.change(**how)
    try:
        await asyncio.sleep(seconds)
    finally:
        weather.clear()


async def refuse(world: World, fault: Planned) -> None:
    gate = gate_of(world, fault)
    gate.refuse()
    gate.reset()
    await asyncio.sleep(fault.duration)
    await gate.open()


async def flap(world: World, fault: Planned) -> None:
    for _ in range(FLAPS):
        gate_of(world, fault).reset()
        await asyncio.sleep(fault.duration / FLAPS)


async def swizzle(world: World, fault: Planned) -> None:
    """Hold back some connections one by one, and let them go in another order."""
    random = Random(fault.draw)
    carriers = list(gate_of(world, fault).carriers.values())
    some = random.sample(carriers, random.randint(1, len(carriers))) if carriers else []
    pause = fault.duration / (2 * len(some) or 1)
    for carrier in some:
        carrier.weather.change(holds_up=True, holds_down=random.random() < SHARE_OF_BOTH_WAYS)
        await asyncio.sleep(pause)
    for carrier in random.sample(some, len(some)):
        carrier.weather.clear()
        await asyncio.sleep(pause)


# --- Postgres ---------------------------------------------------------------------------


async def terminate(world: World, fault: Planned) -> None:
    await world.servers.terminate(share=max(fault.draw, STEP))


async def kill_postgres(world: World, fault: Planned) -> None:
    await world.servers.kill_postgres(fault.duration)


async def read_only(world: World, fault: Planned) -> None:
    await world.servers.read_only(fault.duration)


ACTIONS: dict[str, Action] = {
    "worker_kill": Action(kill_worker, until_replaced),
    "worker_stop": Action(last=stop_worker),
    "worker_term": Action(end_worker),
    "child_kill": Action(kill_children),
    "relay_kill": Action(kill_worker, until_replaced),
    "deploy": Action(last=deploy),
    "broker_kill": Action(last=kill_broker),
    "broker_stop": Action(last=stop_broker),
    "broker_restart": Action(last=restart_broker),
    "connection_close": Action(last=close_some),
    "connections_close": Action(last=close_all),
    "queue_delete": Action(last=delete_queue),
    "memory_alarm": Action(last=alarm),
    "amqp_reset": Action(reset),
    "amqp_blackhole": Action(last=black_hole),
    "amqp_slice": Action(last=slices),
    "amqp_slow": Action(last=slow),
    "amqp_refuse": Action(last=refuse),
    "amqp_flap": Action(last=flap),
    "amqp_swizzle": Action(last=swizzle),
    "ack_reset": Action(reset),
    "confirms_lost": Action(lose_answers, then_reset),
    "postgres_terminate": Action(last=terminate),
    "postgres_kill": Action(last=kill_postgres),
    "postgres_read_only": Action(last=read_only),
    "postgres_reset": Action(reset),
    "postgres_blackhole": Action(last=black_hole),
    "postgres_slow": Action(last=slow),
    "postgres_refuse": Action(last=refuse),
    "commit_swallowed": Action(reset),
    "commit_lost": Action(reset),
    "publisher_reset": Action(reset),
}
