// Package lighthouse is the CoreDNS plugin that answers a clusterset zone, such as clusterset.local, from the objects of
// the Multi-Cluster Services API: ServiceImports and the EndpointSlices beside them.
//
//	watch.go    the API objects, slimmed on arrival   -> world.go
//	world.go    what is known, and one record per service, built when that service changes -> zone.go
//	zone.go     the immutable zone that queries read through one atomic pointer
//	name.go     the question: which part of the name table a query name falls in
//	answer.go   the records of a name
//	handler.go  the reply: rcode, SOA, glue, fallthrough
//
// A query takes no lock. A change builds the record of the one service it touches and swaps the pointer; everything
// else is shared with the zone before it.
package lighthouse
