module lictor.io/testbed/tools/consul

go 1.26.0
