// Package helm holds Fastnet's two charts, so that kubectl-fastnet installs the very charts that users find in this
// directory.
package helm

import (
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"helm.sh/helm/v4/pkg/chart/loader/archive"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
)

// The charts, by the name of their directory.
const (
	Broker = "fastnet-broker"
	Member = "fastnet"
)

// all: the files that begin with an underscore are templates too.
//
//go:embed all:fastnet all:fastnet-broker
var files embed.FS

// Chart loads a chart. It fails for a name other than Broker and Member.
func Chart(name string) (*chart.Chart, error) {
	var read []*archive.BufferedFile
	err := fs.WalkDir(files, name, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := files.ReadFile(path)
		read = append(read, &archive.BufferedFile{Name: strings.TrimPrefix(path, name+"/"), Data: data})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	loaded, err := loader.LoadFiles(read)
	if err != nil {
		return nil, fmt.Errorf("chart %s: %w", name, err)
	}
	return loaded, nil
}
