"""One region: read, infer, write, record.

Begin with `worker`; `batching` shares a device between regions. `executor` is the interface, `ray_executor` (Ray Data)
and `serial_executor` (this process) carry regions out.
"""
