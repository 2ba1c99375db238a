"""What the contract asks of a driver's pure part, as tests: documents, leases, plans. No root, no kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_interface
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import Schema, ValidationError

from conetd import registry
from conetd.driver import API_VERSION, JSON, Attachment, Exhausted, Identities, Identity, Lease, Network, PlannedDriver
from conetd.model import is_interface_name
from conetd.plan import EndpointPolicy, Plan, Veth, identity
from conetd.testing.sample import HOSTS, Sample

_STRANGE = {"a_field_nobody_knows": 1}


class DriverConformance:
    """Inherit, name the class `Test…`, and set `sample`."""

    sample: ClassVar[Sample]

    def test_its_entry_point_loads(self) -> None:
        if self.sample.type not in {one.type for one in registry.installed()}:
            pytest.skip(f"no installed distribution has the entry point {registry.GROUP}: {self.sample.type}")

        loaded = registry.load([self.sample.type])[self.sample.type]

        assert type(loaded.driver) is self.sample.driver

    def test_it_pins_the_version_of_the_contract_it_was_written_for(self) -> None:
        assert self.sample.driver.__dict__.get("api_version") == API_VERSION

    def test_configs_and_policies_load_to_the_same_again_once_dumped(self) -> None:
        for schema, document in self._documents():
            loaded = schema.load(document)

            assert schema.load(schema.dump(loaded)) == loaded

    def test_a_dumped_document_is_json(self) -> None:
        for schema, document in self._documents():
            dumped = schema.dump(schema.load(document))

            assert json.loads(json.dumps(dumped)) == dumped

    def test_an_unknown_field_is_refused(self) -> None:
        for schema, document in self._documents():
            with pytest.raises(ValidationError) as refused:
                schema.load(document | _STRANGE)

            assert isinstance(refused.value.messages, dict)
            assert set(refused.value.messages) == set(_STRANGE)

    def test_an_invalid_document_is_refused(self) -> None:
        for schema, invalid in (
            (self.sample.driver.config_schema(), self.sample.invalid_configs),
            (self.sample.driver.policy_schema(), self.sample.invalid_policies),
        ):
            for document in invalid:
                with pytest.raises(ValidationError):
                    schema.load(document)

    def test_networks_of_the_type_stand_beside_each_other(self) -> None:
        driver, network = self.sample.driver(), self.sample.network()
        driver.check_network(network, [])
        if self.sample.another_config is not None:
            driver.check_network(network, [self.sample.network("red", self.sample.another_config)])

    def test_a_network_can_have_the_policies(self) -> None:
        for document in self.sample.all_policies():
            self.sample.driver().check_policy(self.sample.network(), self.sample.policy(document))

    # Every class that inherits the test runs it with an executor of its own, as it should.
    @settings(suppress_health_check=[HealthCheck.differing_executors])
    @given(st.lists(st.none() | st.integers(0, 1000), max_size=30))
    def test_no_claim_is_given_twice(self, steps: list[int | None]) -> None:
        """None attaches one more container, a number detaches one of those there are."""
        network = self.sample.network()
        leases: dict[str, Lease] = {}
        for number, step in enumerate(steps):
            held = frozenset(claim for lease in leases.values() for claim in lease.claims)
            if step is not None:
                if leases:
                    del leases[sorted(leases)[step % len(leases)]]
                continue
            try:
                lease = self.sample.attachment(network, f"c{number}", held).lease
            except Exhausted:
                return
            assert lease is not None
            assert not lease.claims & held
            leases[f"c{number}"] = lease

    def test_equal_questions_get_equal_leases(self) -> None:
        network = self.sample.network()

        assert self.sample.attachment(network).lease == self.sample.attachment(network).lease

    def test_a_lease_can_be_stored_as_json(self) -> None:
        lease = self.sample.attachment(self.sample.network()).lease
        assert lease is not None

        assert json.loads(json.dumps(lease.data)) == lease.data
        assert all(isinstance(claim, str) for claim in lease.claims)
        assert lease.gateways <= {4, 6}

    def test_port_requests_name_their_place_in_the_document(self) -> None:
        for document in self.sample.all_policies():
            for request in self.sample.driver().port_requests(self.sample.policy(document)):
                assert request.path
                assert request.protocol in (6, 17)

    def test_equal_questions_get_equal_plans(self) -> None:
        assert self._plans() == self._plans()

    def test_every_link_has_a_name_the_kernel_takes(self) -> None:
        for link in (link for plan in self._plans() for link in plan.links):
            assert is_interface_name(link.name)
            assert not isinstance(link, Veth) or link.peer == "eth0"

    def test_two_attachments_share_no_link_of_the_host_and_no_filter_object(self) -> None:
        driver, network = self.sample.driver(), self.sample.network()
        if not isinstance(driver, PlannedDriver):
            pytest.skip("the driver does not plan")
        web = self.sample.attachment(network, "web")
        db = self.sample.attachment(network, "db", web.lease.claims if web.lease else ())
        first, second = (_planned(driver, network, one, self.sample.policy({})) for one in (web, db))

        assert not {link.name for link in first.links} & {link.name for link in second.links}
        assert not set(map(identity, first.filter)) & set(map(identity, second.filter))

    def test_a_policy_is_one_filter_object_with_the_attachments_key(self) -> None:
        driver, network = self.sample.driver(), self.sample.network()
        if not isinstance(driver, PlannedDriver):
            pytest.skip("the driver does not plan")
        for document in self.sample.all_policies():
            attachment = self.sample.attachment(network, policy=document)
            plan = driver.plan_policy(network, attachment, self.sample.policy(document))

            assert [identity(one) for one in plan.filter] == [(EndpointPolicy.__name__, attachment.key)]
            assert plan == Plan(filter=plan.filter)

    def test_two_hosts_claim_nothing_in_common(self) -> None:
        leases = self._host_leases()

        assert sum(len(lease.claims) for lease in leases) == len({claim for lease in leases for claim in lease.claims})
        assert all(json.loads(json.dumps(lease.data)) == lease.data for lease in leases)

    def test_a_host_keeps_what_it_has_when_it_is_asked_again(self) -> None:
        first, second, _ = self._host_leases()
        driver, network = self.sample.driver(), self.sample.network()

        for lease, host, held in ((first, HOSTS[0], second.claims), (second, HOSTS[1], frozenset[str]())):
            again = driver.allocate_host(network, host, lease, held)

            assert again is not None
            assert again.claims == lease.claims

    def test_what_is_planned_for_other_hosts_lies_on_links_of_the_network_and_apart(self) -> None:
        self._host_leases()
        driver, network = self.sample.driver(), self.sample.network()
        if not isinstance(driver, PlannedDriver):
            pytest.skip("the driver does not plan")
        links = {link.name for link in driver.plan_network(network).links}
        first, second = (driver.plan_member(network, host, data) for host, data in network.members.items())

        for plan in (first, second):
            assert plan == Plan(routes=plan.routes, neighbours=plan.neighbours, fdb=plan.fdb, filter=plan.filter)
            assert {one.link for one in plan.routes} | {one.link for one in plan.neighbours} <= links
            assert {one.link for one in plan.fdb} <= links
        assert not set(map(identity, first.filter)) & set(map(identity, second.filter))
        assert not {route.destination for route in first.routes} & {route.destination for route in second.routes}
        assert not {(one.link, one.mac) for one in first.fdb} & {(one.link, one.mac) for one in second.fdb}

    def test_a_policy_follows_from_no_identity_that_its_selectors_do_not_mean(self) -> None:
        self._host_leases()
        driver, network = self.sample.driver(), self.sample.network()
        if not isinstance(driver, PlannedDriver):
            pytest.skip("the driver does not plan")
        stranger = Identity(77, (("a-label", "nobody-knows"),))
        crowded = replace(network, identities=Identities.of([stranger]))
        for document in self.sample.all_policies():
            attachment, policy = self.sample.attachment(network, policy=document), self.sample.policy(document)
            assert not any(stranger.matches(one) for one in driver.selectors(policy))

            assert driver.plan_policy(crowded, attachment, policy) == driver.plan_policy(network, attachment, policy)

    def test_what_is_told_of_an_attachment_is_json_with_prefix_lengths(self) -> None:
        driver, network = self.sample.driver(), self.sample.network()
        if not isinstance(driver, PlannedDriver):
            pytest.skip("the driver does not plan")
        told = driver.describe(network, self.sample.attachment(network))

        assert json.loads(json.dumps(told)) == told
        assert all("/" in address and ip_interface(address) for address in told["addresses"])

    def _host_leases(self) -> list[Lease]:
        if not self.sample.spans_hosts:
            pytest.skip("the driver has not the capability cluster")
        return self.sample.host_leases(self.sample.network())

    def _documents(self) -> list[tuple[Schema, JSON]]:
        driver = self.sample.driver
        configs = [one for one in (self.sample.config, self.sample.another_config) if one is not None]
        return [(driver.config_schema(), one) for one in configs] + [
            (driver.policy_schema(), one) for one in self.sample.all_policies()
        ]

    def _plans(self) -> list[Plan]:
        driver, network = self.sample.driver(), self.sample.network()
        if not isinstance(driver, PlannedDriver):
            pytest.skip("the driver does not plan")
        plans = [driver.plan_network(network)]
        plans += [driver.plan_member(network, host, data) for host, data in network.members.items()]
        for document in self.sample.all_policies():
            attachment = _stored(self.sample.attachment(network, policy=document))
            plans.append(_planned(driver, network, attachment, self.sample.policy(document)))
        return plans


def _planned(driver: PlannedDriver[Any, Any], network: Network[Any], attachment: Attachment, policy: Any) -> Plan:
    return driver.plan_attachment(network, attachment) + driver.plan_policy(network, attachment, policy)


def _stored(attachment: Attachment) -> Attachment:
    """The attachment as it is after its lease went through the store."""
    lease = attachment.lease
    assert lease is not None
    return replace(attachment, lease=replace(lease, data=json.loads(json.dumps(lease.data))))
