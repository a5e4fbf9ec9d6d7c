"""The alias `champion` moves in one step, or not at all."""

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from cataloger.errors import ModelError, TrackingError
from cataloger.infra import tracking
from cataloger.model import registry
from servers import mlflow_server


@pytest.fixture
def shop(tracking_store: str, request: pytest.FixtureRequest) -> str:
    """A model of three versions without content, of which nobody is champion."""
    tracking.connect()
    name = f"shop-{request.node.name}"
    register(name)
    return name


def register(name: str) -> None:
    client = MlflowClient()
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, "s3://shop/none", None)


def test_promotions_are_undone_one_by_one(shop: str) -> None:
    with pytest.raises(ModelError, match="has no champion"):
        registry.rollback(shop)
    for before, version in ((None, "1"), ("1", "2"), ("2", "3"), ("3", "2")):
        registry.promote(shop, version, f"reasons for {version}", before)
    assert registry.champion(shop) == "2"
    assert registry.rollback(shop) == ("3", "2")
    assert registry.rollback(shop) == ("2", "3")
    assert registry.rollback(shop) == ("1", "2")
    assert registry.champion(shop) == "1"
    assert MlflowClient().get_model_version(shop, "2").tags["promotion"] == "reasons for 2"
    assert registry.rolled_back(shop, "2")
    assert not registry.rolled_back(shop, "1")
    with pytest.raises(ModelError, match="first champion"):
        registry.rollback(shop)
    with pytest.raises(ModelError, match="not registered"):
        registry.champion("nobody")


def test_a_version_that_nearly_became_champion_is_not_gone_back_to(shop: str) -> None:
    """MLflow went away between the list of champions and the alias."""
    registry.promote(shop, "1", "", None)
    MlflowClient().set_registered_model_tag(shop, registry.CHAMPIONS, json.dumps(["1", "2"]))
    registry.promote(shop, "3", "", "1")
    assert registry.rollback(shop) == ("1", "3")
    with pytest.raises(ModelError, match="first champion"):
        registry.rollback(shop)


def test_a_server_that_vanishes_leaves_the_champion_as_it_was(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, tracking_store: str
) -> None:
    store = working_folder / "server"
    with mlflow_server(store) as (address, kill):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        tracking.connect()
        register("shop")
        registry.promote("shop", "1", "the first", None)
        kill()
        with pytest.raises(TrackingError, match="MLflow at http"):
            registry.promote("shop", "2", "better", "1")
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    assert registry.champion("shop") == "1"
    mlflow.set_tracking_uri(tracking_store)


def test_an_unwilling_store_is_named_and_the_champion_stays(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.promote(shop, "1", "the first", None)
    with pytest.raises(
        TrackingError, match=f"model {shop}: MLflow at sqlite.* did not move the champion.*it is the one it was"
    ):
        registry.promote(shop, "99", "no such version", "1")
    with pytest.raises(TrackingError, match="version 1 became champion meanwhile"):
        registry.promote(shop, "2", "compared with a champion that is no more", "3")
    assert registry.champion(shop) == "1"
    assert json.dumps(dict(MlflowClient().get_registered_model(shop).aliases)) in (
        '{"champion": "1"}',
        '{"champion": 1}',
    )
