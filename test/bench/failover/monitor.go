package main

import (
	"bufio"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// monitor keeps lines of a command that goes on and on.
type monitor struct {
	command *exec.Cmd
	mu      sync.Mutex
	lines   []string
}

// startMonitor keeps the lines that hold the words.
func startMonitor(command *exec.Cmd, words string) (*monitor, error) {
	out, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	m := &monitor{command: command}
	go func() {
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			if strings.Contains(scanner.Text(), words) {
				m.mu.Lock()
				m.lines = append(m.lines, scanner.Text())
				m.mu.Unlock()
			}
		}
	}()
	return m, nil
}

// seen is a copy of the lines so far.
func (m *monitor) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.lines)
}

// stop ends the command, which knows no other end than being killed.
func (m *monitor) stop() {
	_ = m.command.Cancel()
	_ = m.command.Wait()
}
