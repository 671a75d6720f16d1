"""Composition: settings in, a running service out. Everything is made here, started in order, closed in reverse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass

from fastapi import FastAPI

from app.api.application import build_application
from app.api.auth import Access, open_access
from app.api.body import EdgeLimits
from app.api.calibration import Calibrator
from app.api.connections import Connections
from app.api.drain import Drain
from app.api.job_readings import JobReadings
from app.api.readiness import Readiness
from app.api.server import Server, bind, server_config
from app.api.services import BackboneFacts, Services
from app.backbone import Backbone, BackboneConfig, load_backbone
from app.concurrency import running_beside
from app.engine import EngineConfig, EngineService
from app.errors import StoreDown
from app.heap import settle_heap
from app.interchange.importing import Interchange
from app.registry import Registry
from app.settings import Settings
from app.telemetry import Metrics, configure_logging
from app.telemetry.metrics import engine_readings, engine_tallies, process_readings
from app.telemetry.tracing import Tracer, check_extra, open_tracer
from app.training import DatasetStore, JobStore
from prompt_store import PromptStore, RedisMetadata, StoreError
from prompt_store.breaker import Breaker
from prompt_store.remote_blobs import blobs_at
from prompt_store.starters import install_starters

log = logging.getLogger(__name__)
SHARE_S = 1.0


@dataclass(frozen=True)
class Parts:
    """What a caller brings along instead of having it made; tests bring fakes."""

    store: PromptStore | None = None
    backbone: Backbone | None = None
    engine: EngineService | None = None
    jobs: JobStore | None = None
    datasets: DatasetStore | None = None


def create_app(
    settings: Settings,
    *,
    store: PromptStore | None = None,
    backbone: Backbone | None = None,
    engine: EngineService | None = None,
    jobs: JobStore | None = None,
    datasets: DatasetStore | None = None,
    limits: EdgeLimits | None = None,
    access: Access | None = None,
    tracer: Tracer | None = None,
) -> FastAPI:
    """The application; what is not given is made from the settings when it starts.

    Raises UnsafeExposure for settings that would open it to others without a key, TracingUnavailable.
    """
    tracer = tracer or open_tracer(settings.otlp_endpoint, service="chorus-api", share=settings.trace_share)
    access = access or open_access(settings)
    drain, metrics, connections = Drain(settings.drain_s), Metrics(), Connections(settings.max_connections)
    metrics.observe("http", connections.readings)
    parts = Parts(store, backbone, engine, jobs, datasets)
    app = build_application(
        settings,
        access=access,
        drain=drain,
        metrics=metrics,
        limits=limits or EdgeLimits(),
        tracer=tracer,
        lifespan=_lifespan(settings, parts, access, drain, metrics, tracer),
    )
    app.state.drain, app.state.connections = drain, connections
    return app


def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT. What stands in the way is raised before it listens.

    Raises UnsafeExposure, AddressTaken, StoreDown for settings without a registry, UnsupportedBackbone,
    TracingUnavailable.
    """
    access = open_access(settings)
    _redis_url(settings)
    configure_logging(settings.log_level, settings.log_format)
    check_extra(settings.otlp_endpoint)
    with closing(bind(settings.host, settings.port)) as listener:
        asked = access.directory.unread or access.directory.has_keys
        keys = "asked for" if asked else "none asked for: only this machine gets here"
        where = {"host": settings.host, "port": listener.getsockname()[1]}
        log.info("starting", extra={**where, "model": settings.model, "keys": keys})
        app = create_app(settings, backbone=load_backbone(_backbone_config(settings)), access=access)

        async def cut_off() -> None:
            services: Services = app.state.services
            await services.engine.stop(0)

        settle_heap()  # the model, its tokenizer and all modules are there
        Server(server_config(app), app.state.drain, cut_off, listener).run()


def _lifespan(
    settings: Settings, parts: Parts, access: Access, drain: Drain, metrics: Metrics, tracer: Tracer
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(asyncio.to_thread, tracer.close)
            await stack.enter_async_context(access.followed())
            services = app.state.services = await _start(settings, parts, access, drain, metrics, stack)
            jobs = JobReadings(services.jobs)
            await stack.enter_async_context(jobs.followed())
            metrics.observe("process", process_readings)
            metrics.observe("training", jobs)
            metrics.observe("registry", services.registry.readings)
            metrics.observe("engine", lambda: engine_readings(services.engine.stats()))
            metrics.observe_tallies("engine", lambda: engine_tallies(services.engine.stats()))
            log.info("ready", extra={"backbone": services.backbone.name})
            yield
            drain.begin()

    return lifespan


async def _start(
    settings: Settings, parts: Parts, access: Access, drain: Drain, metrics: Metrics, stack: AsyncExitStack
) -> Services:
    breaker = Breaker()
    metrics.observe("redis", breaker.readings)
    backbone = parts.backbone
    if backbone is None:
        backbone = await asyncio.to_thread(load_backbone, _backbone_config(settings))
    store = parts.store
    if store is None:
        store = PromptStore(
            RedisMetadata(_redis_url(settings), breaker=breaker), blobs_at(settings.blobs, settings.blobs_url)
        )
        stack.callback(store.close)
    jobs = parts.jobs or _open_jobs(settings, store, backbone, breaker)
    engine = parts.engine or EngineService(backbone, _engine_config(settings))
    await engine.start()
    stack.push_async_callback(engine.stop, settings.drain_s)
    if settings.repair:
        await _repair(store)
    if settings.starters:
        await _install_starters(store, backbone)
    registry = Registry(
        store,
        backbone,
        manifest=settings.data_dir / "manifest.json",
        reconcile_s=settings.reconcile_s,
        admit=engine.admit,
        release=engine.release,
        host_cache_bytes=settings.host_prompt_cache_mb << 20,
        preload=settings.preload_refs,
        scrub_s=settings.scrub_s,
        metrics=metrics,
    )
    await registry.start()
    stack.push_async_callback(registry.stop)
    services = Services(
        settings=settings,
        registry=registry,
        engine=engine,
        jobs=jobs,
        datasets=parts.datasets or jobs.datasets,
        backbone=_facts(backbone),
        drain=drain,
        readiness=Readiness(registry, engine, drain),
        metrics=metrics,
        calibrator=Calibrator(engine, timeout_s=settings.default_timeout_s),
        access=access,
        interchange=Interchange(backbone, registry, engine),
    )
    await stack.enter_async_context(_threads_shared(services))
    return services


def _open_jobs(settings: Settings, store: PromptStore, backbone: Backbone, breaker: Breaker) -> JobStore:
    return JobStore.open(
        _redis_url(settings),
        settings.data_dir,
        store,
        lease_s=settings.job_lease_s,
        max_rows=settings.max_train_rows,
        blobs_url=settings.blobs_url,
        backbone=backbone,
        breaker=breaker,
    )


async def _repair(store: PromptStore) -> None:
    """Bring back what a server that lost its files has forgotten, and write the records a killed publisher left out."""
    try:
        report = await asyncio.to_thread(store.rebuild)
    except StoreError as error:
        log.warning("registry not repaired", extra={"code": error.code})
        return
    for problem in report.problems:
        log.warning("registry repaired" if problem.repaired else "registry needs care", extra=problem.model_dump())


async def _install_starters(store: PromptStore, backbone: Backbone) -> None:
    """Starters are a courtesy: a store that is out of reach, or a damaged file, must not keep the service down."""
    try:
        installed = await asyncio.to_thread(install_starters, store, backbone.fingerprint)
    except StoreError as error:
        log.warning("starter prompts not installed", extra={"code": error.code, "why": error.message})
        return
    if installed:
        log.info("starter prompts installed", extra={"tasks": installed})


@asynccontextmanager
async def _threads_shared(services: Services) -> AsyncIterator[None]:
    """On the CPU, give up one thread to each trainer that computes on this machine, and take it back after."""
    if not services.backbone.device.startswith("cpu"):
        yield
        return
    async with running_beside(_share_threads(services), "share CPU threads"):
        yield


async def _share_threads(services: Services) -> None:
    cores, given, trainers = services.settings.cpu_threads, 0, 0
    while True:
        try:
            trainers = await asyncio.to_thread(services.jobs.active_trainers, services.host)
        except Exception as error:  # whatever it is, the last count stays until there is a new one
            log.debug("trainers not counted", exc_info=error)
        wanted = max(1, cores - trainers * max(1, cores // 2))  # a trainer takes half of them
        if wanted != given:
            services.engine.set_threads(wanted)
            log.info("threads shared", extra={"serving": wanted, "trainers": trainers})
            given = wanted
        await asyncio.sleep(SHARE_S)


def _facts(backbone: Backbone) -> BackboneFacts:
    return BackboneFacts(
        name=backbone.name,
        fingerprint=backbone.fingerprint,
        family=backbone.family,
        dtype=str(backbone.dtype).removeprefix("torch."),
        device=str(backbone.device),
        runner=backbone.runner_name,
    )


def _backbone_config(settings: Settings) -> BackboneConfig:
    return BackboneConfig(
        source=settings.model,
        revision=settings.model_revision,
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        cache=settings.data_dir / "backbones",
        serving=True,
    )


def _engine_config(settings: Settings) -> EngineConfig:
    return EngineConfig(
        max_rows=settings.max_rows,
        max_context=settings.max_context,
        max_queued_rows=settings.max_queued_rows,
        max_queued_tokens=settings.max_queued_tokens,
        max_batch_tokens=settings.max_batch_tokens,
        prompt_cache_bytes=settings.prompt_cache_mb << 20,
        prompt_vector_bytes=settings.prompt_vectors_mb << 20,
        threads=settings.cpu_threads,
        stall_s=settings.stall_s,
    )


def _redis_url(settings: Settings) -> str:
    if settings.redis_url is None:
        raise StoreDown("no registry: set CHORUS_REDIS_URL, or run `chorus up`, which brings its own")
    return settings.redis_url
