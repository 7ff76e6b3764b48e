"""py-eureka-client, unmodified: registers itself, lists what it finds, leaves when told to.

    python3 eureka.py PORT

Prints a line of JSON each time that what it sees of the app ORDERS changes, and "stopped" last.
"""

import json
import logging
import sys
import threading
import time

import py_eureka_client.eureka_client as eureka_client

logging.disable(logging.CRITICAL)

client = eureka_client.init(
    eureka_server=f"http://127.0.0.1:{sys.argv[1]}/eureka",
    app_name="py-app",
    instance_id="py-1",
    instance_host="127.0.0.1",
    instance_ip="127.0.0.1",
    instance_port=9092,
    renewal_interval_in_secs=1,
    duration_in_secs=3,
    metadata={"color": "green"},
)

told_to_leave = threading.Event()
threading.Thread(
    target=lambda: (sys.stdin.read(), told_to_leave.set()), daemon=True
).start()

last = None
while not told_to_leave.is_set():
    app = client.applications.get_application("ORDERS")
    found = [
        {"id": one.instanceId, "status": one.status, "port": one.port.port}
        for one in (app.instances if app else [])
    ]
    line = json.dumps(found)
    if line != last:
        last = line
        print(line, flush=True)
    told_to_leave.wait(0.2)
eureka_client.stop()
print("stopped", flush=True)
