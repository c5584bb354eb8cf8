// Package lab runs real Kubernetes clusters on one Linux machine: etcd, kube-apiserver, kube-controller-manager and
// kube-scheduler, and on every node kubelet, containerd and kube-proxy, with neither Docker nor a registry.
//
// A node is a set of namespaces (network, mount, process, host name) held by one process, its init. A cluster is a
// bridge with the nodes on it. The bridges meet in one more network namespace, the WAN: a router that knows the nodes'
// subnets and nothing of pod or service ranges, so that whatever crosses between the pods of two clusters was carried
// by a tunnel.
//
//	node c1-control   node c1-worker1          node c2-control   node c2-worker1
//	172.30.1.2        172.30.1.3               172.30.2.2        172.30.2.3
//	    eth0              eth0                     eth0              eth0
//	     |                 |                        |                 |
//	+----+------ c1 -------+---+               +----+------ c2 -------+---+
//	|  172.30.1.1  fd30:1::1   |---- route ----|  172.30.2.1  fd30:2::1   |   namespace fastnet-wan
//	+--------------------------+       |       +--------------------------+
//	                                 host
//	                                   |
//	                             fastnet-host 172.30.0.1, on the machine itself
//
// Everything the lab makes bears a mark by which [Down] and [Leftovers] find it again, also when the process that made
// it was killed: network namespaces fastnet-wan and fastnet-CLUSTER-NODE, the link fastnet-host, the control groups
// below fastnet-lab, and the state folder [StateDir]. There is one lab on a machine.
package lab
