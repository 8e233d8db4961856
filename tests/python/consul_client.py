"""Follows orders.shop as a program does that knows Consul: host and port of the API."""

import sys

import consul

host, port = sys.argv[1:]
client = consul.Consul(host=host, port=int(port), token="an open registry needs none")
print("datacentre", client.agent.self()["Config"]["Datacenter"], flush=True)
print("services", client.catalog.services()[1], flush=True)
index = None
while True:
    index, entries = client.health.service("orders.shop", index=index, wait="30s", passing=True)
    services = [(entry["Service"], entry["Checks"][0]["Status"]) for entry in entries]
    seen = [(service["ID"], service["Address"], service["Port"], status) for service, status in services]
    print("sees", seen, flush=True)
