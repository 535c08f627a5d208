"""The FreeSWITCH example, against a FreeSWITCH that behaves like the recorded one."""
