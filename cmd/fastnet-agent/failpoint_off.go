//go:build !failpoint

package main

import "sigs.k8s.io/controller-runtime/pkg/client"

// failing is the client itself. Only a program that is built with the tag failpoint can be told to die at a write.
func failing(c client.Client) client.Client { return c }
