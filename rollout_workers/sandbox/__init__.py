"""Sandboxes: one agent inside, one channel to it, and two back ends that build the walls.

agent.py       the first process inside; runs commands, leaves nothing of them behind
channel.py     frames to and from it, believed in nothing
box.py         the `Sandbox` that callers see: agent + channel + what the walls know of its death
filter.py      the system calls that commands may not make
cgroup.py      memory and process limits over all processes together
bubblewrap.py  walls of namespaces on this host
template.py    what bubblewrap starts once, and every sandbox behind such walls is a fork of
docker.py      walls of a container engine
pool.py        some of them kept ready
select.py      takes the strongest that works
"""
