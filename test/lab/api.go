package lab

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// api is the little of the Kubernetes API that bringing a cluster up needs. It does not stand on client-go, which would
// be in the memory of every node's init.
type api struct {
	server string
	client *http.Client
}

func newAPI(server string, ca *authority) (*api, error) {
	cert, key, err := ca.issue("fastnet-lab", []string{"system:masters"}, nil, nil)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	return &api{server, &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}},
	}}, nil
}

// do sends one request; it decodes the answer into out unless that is nil.
func (a *api) do(ctx context.Context, method, path, contentType string, body, out any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, a.server+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	answer, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err = io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode >= 300 {
		return &apiError{answer.StatusCode, fmt.Sprintf("%s %s: %s: %s", method, path, answer.Status,
			strings.TrimSpace(string(text)))}
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(text, out)
}

type apiError struct {
	code int
	text string
}

func (e *apiError) Error() string { return e.text }

func (a *api) get(ctx context.Context, path string, out any) error {
	return a.do(ctx, http.MethodGet, path, "application/json", nil, out)
}

// apply makes the object at a collection's path be as given, by server-side apply.
func (a *api) apply(ctx context.Context, collection, name string, object any) error {
	return a.do(ctx, http.MethodPatch, collection+"/"+name+"?fieldManager=fastnet-lab&force=true",
		"application/apply-patch+yaml", object, nil)
}

// ready says whether the API server answers that it is ready.
func (a *api) ready(ctx context.Context) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+"/readyz", nil)
	if err != nil {
		return false
	}
	answer, err := a.client.Do(request)
	if err != nil {
		return false
	}
	defer answer.Body.Close()
	return answer.StatusCode == http.StatusOK
}

// condition is one of an object's status conditions.
type condition struct {
	Type, Status      string
	LastHeartbeatTime time.Time
}

// readyNodes maps each node that is Ready to the time its kubelet last said so.
func (a *api) readyNodes(ctx context.Context) (map[string]time.Time, error) {
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Status   struct{ Conditions []condition }
		}
	}
	if err := a.get(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	ready := map[string]time.Time{}
	for _, node := range list.Items {
		for _, c := range node.Status.Conditions {
			if c.Type == "Ready" && c.Status == "True" {
				ready[node.Metadata.Name] = c.LastHeartbeatTime
			}
		}
	}
	return ready, nil
}

// isNotFound says whether the API server answered that there is no such object (yet).
func isNotFound(err error) bool {
	var answer *apiError
	return errors.As(err, &answer) && answer.code == http.StatusNotFound
}
