"""Registers and discovers as a program does that knows AWS Cloud Map: endpoint, and secret access key.

With a third argument, the file of root certificates for https."""

import sys

import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError

endpoint, secret, *roots = sys.argv[1:]
client = botocore.session.get_session().create_client(
    "servicediscovery",
    endpoint_url=endpoint,
    region_name="local",
    aws_access_key_id="pillion",
    aws_secret_access_key=secret,
    verify=roots[0] if roots else None,
    config=Config(inject_host_prefix=False, retries={"max_attempts": 0}),
)


def refused(call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "accepted"


def register(instance, port, **attributes):
    attributes = {"AWS_INSTANCE_IPV4": "10.0.0.5", "AWS_INSTANCE_PORT": str(port)} | attributes
    answer = client.register_instance(ServiceId=SERVICE, InstanceId=instance, Attributes=attributes)
    operation = client.get_operation(OperationId=answer["OperationId"])["Operation"]
    assert operation["Status"] == "SUCCESS" and operation["Type"] == "REGISTER_INSTANCE", operation
    assert operation["Targets"] == {"SERVICE": SERVICE, "INSTANCE": instance}, operation
    assert operation["CreateDate"].year > 2020 and answer["ResponseMetadata"]["RequestId"], answer


def found(**filters):
    answer = client.discover_instances(NamespaceName="shop", ServiceName="orders", **filters)
    return sorted(instance["InstanceId"] for instance in answer["Instances"])


def revision():
    return client.discover_instances_revision(NamespaceName="shop", ServiceName="orders")["InstancesRevision"]


SERVICE = "orders.shop"
denied = refused(client.list_namespaces)
if denied != "accepted":
    sys.exit(f"refused: {denied}")

register("orders-1", 8080, version="v1", AVAILABILITY_ZONE="eu-west-1a", note="x" * 1000)
register("10.0.0.6:8080", 8080, version="v2", AWS_INSTANCE_IPV4="10.0.0.6", AWS_INIT_HEALTH_STATUS="UNHEALTHY")
assert found() == ["orders-1"], found()
for filters, want in [
    ({"HealthStatus": "ALL"}, ["10.0.0.6:8080", "orders-1"]),
    ({"HealthStatus": "UNHEALTHY"}, ["10.0.0.6:8080"]),
    ({"HealthStatus": "HEALTHY_OR_ELSE_ALL"}, ["orders-1"]),
    ({"HealthStatus": "HEALTHY", "QueryParameters": {"version": "v2"}}, []),
    ({"HealthStatus": "HEALTHY_OR_ELSE_ALL", "QueryParameters": {"version": "v2"}}, ["10.0.0.6:8080"]),
    ({"HealthStatus": "ALL", "OptionalParameters": {"version": "v2"}}, ["10.0.0.6:8080"]),
    ({"HealthStatus": "ALL", "OptionalParameters": {"version": "v9"}}, ["10.0.0.6:8080", "orders-1"]),
    ({"QueryParameters": {"AWS_INSTANCE_PORT": "8080"}}, ["orders-1"]),
]:
    assert found(**filters) == want, (filters, found(**filters))
one = client.discover_instances(NamespaceName="shop.mesh.internal", ServiceName="orders")
first = one["Instances"][0]
assert first["NamespaceName"] == "shop.mesh.internal" and first["HealthStatus"] == "HEALTHY", first
assert first["Attributes"] == {
    "AWS_INSTANCE_IPV4": "10.0.0.5",
    "AWS_INSTANCE_PORT": "8080",
    "AVAILABILITY_ZONE": "eu-west-1a",
    "version": "v1",
    "note": "x" * 1000,
}, first
assert one["InstancesRevision"] == revision(), one
before = revision()
client.update_instance_custom_health_status(ServiceId=SERVICE, InstanceId="10.0.0.6:8080", Status="HEALTHY")
assert found() == ["10.0.0.6:8080", "orders-1"] and len(found(MaxResults=1)) == 1, found()
assert revision() > before, revision()
assert client.get_instances_health_status(ServiceId=SERVICE)["Status"] == {
    "orders-1": "HEALTHY",
    "10.0.0.6:8080": "HEALTHY",
}
assert client.get_instance(ServiceId=SERVICE, InstanceId="10.0.0.6:8080")["Instance"]["Id"] == "10.0.0.6:8080"
print("registered", flush=True)

namespace = client.list_namespaces(Filters=[{"Name": "NAME", "Values": ["shop"]}])["Namespaces"][0]
assert (namespace["Id"], namespace["ServiceCount"], namespace["Type"]) == ("shop", 1, "HTTP"), namespace
mine = [{"Name": "NAMESPACE_ID", "Values": [namespace["Id"]], "Condition": "EQ"}]
services = client.get_paginator("list_services").paginate(Filters=mine, PaginationConfig={"PageSize": 1})
services = [service for page in services for service in page["Services"]]
assert [(service["Id"], service["InstanceCount"]) for service in services] == [(SERVICE, 2)], services
pages = client.get_paginator("list_instances").paginate(ServiceId=services[0]["Arn"], PaginationConfig={"PageSize": 1})
ids = [instance["Id"] for page in pages for instance in page["Instances"]]
assert sorted(ids) == ["10.0.0.6:8080", "orders-1"], ids

good = {"AWS_INSTANCE_IPV4": "10.0.0.5", "AWS_INSTANCE_PORT": "80"}
for call, arguments, want in [
    (client.register_instance, {"ServiceId": SERVICE, "InstanceId": "a", "Attributes": {}}, "InvalidInput"),
    (client.register_instance, {"ServiceId": SERVICE, "InstanceId": "a b", "Attributes": good}, "InvalidInput"),
    (client.register_instance, {"ServiceId": "Or_ders", "InstanceId": "a", "Attributes": good}, "InvalidInput"),
    (
        client.register_instance,
        {"ServiceId": SERVICE, "InstanceId": "a", "Attributes": {"AWS_EC2_INSTANCE_ID": "i-1"}},
        "InvalidInput",
    ),
    (
        client.register_instance,
        {"ServiceId": SERVICE, "InstanceId": "a", "Attributes": good | {"AWS_INSTANCE_PORT": "0"}},
        "InvalidInput",
    ),
    (
        client.register_instance,
        {"ServiceId": SERVICE, "InstanceId": "a", "Attributes": good | {"AWS_INSTANCE_IPV4": "::1"}},
        "InvalidInput",
    ),
    (client.deregister_instance, {"ServiceId": SERVICE, "InstanceId": "nobody"}, "InstanceNotFound"),
    (client.deregister_instance, {"ServiceId": "nobody.shop", "InstanceId": "a"}, "ServiceNotFound"),
    (client.get_operation, {"OperationId": "nothing"}, "OperationNotFound"),
    (client.discover_instances, {"NamespaceName": "shop", "ServiceName": "nobody"}, "ServiceNotFound"),
    (client.discover_instances, {"NamespaceName": "no", "ServiceName": "orders"}, "NamespaceNotFound"),
    (client.create_http_namespace, {"Name": "other"}, "UnknownOperationException"),
]:
    got = refused(call, **arguments)
    assert got == want, (arguments, got)

operation = client.deregister_instance(ServiceId=SERVICE, InstanceId="10.0.0.6:8080")["OperationId"]
assert client.get_operation(OperationId=operation)["Operation"]["Type"] == "DEREGISTER_INSTANCE"
assert found(HealthStatus="ALL") == ["orders-1"], found(HealthStatus="ALL")
print("done", flush=True)
